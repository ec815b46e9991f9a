"""Settings of the data room."""

from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from core.config import Block

RowFormat = Literal["auto", "alpaca", "messages", "sharegpt", "prompt_completion"]
ChatTemplateName = Literal["gemma-3", "llama-3", "mistral", "chatml", "zephyr"]


class SourceConfig(Block):
    """One place rows come from."""

    path: str = Field(min_length=1)
    """A file, a folder, or a glob such as data/tutor/*.jsonl."""
    format: RowFormat = "auto"
    """Shape of the rows; auto looks at the keys of each row."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this source in the mix, relative to the others."""

    # Files are known by the digest of their content, see ``sources.source_digests``.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"path"})


class FormatConfig(Block):
    """How raw rows become conversations."""

    max_rejected: float = Field(default=0.05, ge=0, le=1)
    """Largest share of rows that may be unusable before the run stops."""
    deduplicate: bool = True
    """Keep one of every group of rows that are equal after normalisation."""


class SplitConfig(Block):
    """How conversations are divided."""

    strategy: Literal["random", "group"] = "random"
    """random: row by row. group: rows that share group_by stay together."""
    train: float = Field(default=0.8, gt=0, lt=1)
    """Share of rows to learn from."""
    val: float = Field(default=0.1, ge=0, lt=1)
    """Share of rows that steer training."""
    test: float = Field(default=0.1, gt=0, lt=1)
    """Share of rows that only evaluations read."""
    seed: int = 3407
    """Decides which row goes where."""
    group_by: str | None = None
    """Metadata field whose rows must not be torn apart, for strategy group."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train + val + test must be 1, not {self.train + self.val + self.test:g}")
        if (self.strategy == "group") != (self.group_by is not None):
            raise ValueError("strategy: group and group_by belong together; give both or neither")
        return self


class DatasetConfig(Block):
    """The dataset block of a training config; its path is a source when no sources are given."""

    path: str = "data/splits/train.jsonl"
    """Training rows: file, folder or glob."""
    validation_path: str | None = None
    """Rows for validation; otherwise they are split off the training rows."""
    text_field: str = "text"
    """Field of plain-text rows; accepted for compatibility, conversations do not use it."""
    chat_template: ChatTemplateName = "gemma-3"
    """Template for tokenizers that bring none of their own."""
    num_proc: int = Field(default=2, ge=1, le=128)
    """Processes for data preparation; accepted for compatibility, one is used."""
