"""Settings of the data room."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from core.config import Block, without_secrets

RowFormat = Literal[
    "auto",
    "alpaca",
    "messages",
    "sharegpt",
    "prompt_completion",
    "question_answer",
    "chat_text",
    "text",
    "mapped",
]
ChatTemplateName = Literal[
    "gemma-3", "llama-3", "mistral", "chatml", "zephyr", "qwen2.5", "qwen3", "phi-3", "phi-4"
]


Place = Annotated[str, Field(min_length=1), AfterValidator(without_secrets)]
"""A path, glob, address or hub dataset."""


class FieldsConfig(Block):
    """Which fields of a row mean what, for rows of no known shape."""

    system: str | None = None
    """Field of the system text."""
    user: str | None = None
    """Field of the question."""
    assistant: str | None = None
    """Field of the answer."""
    messages: str | None = None
    """Field of a list of turns, instead of user and assistant."""
    role: str = "role"
    """Inside a turn: the field of the speaker."""
    content: str = "content"
    """Inside a turn: the field of what is said."""
    roles: dict[str, Literal["system", "user", "assistant", "tool"]] = {}
    """Names of speakers other than the usual ones, such as {pupil: user, teacher: assistant}."""
    text: str | None = None
    """Field of a plain text, instead of all of the above."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        pair = self.user is not None or self.assistant is not None
        if [pair, self.messages is not None, self.text is not None].count(True) != 1:
            raise ValueError("give user and assistant, or messages, or text")
        if pair and (self.user is None or self.assistant is None):
            raise ValueError("user and assistant belong together; give both")
        return self


class SourceConfig(Block):
    """One place rows come from."""

    path: Place
    """A file, a folder, a glob such as data/**/*.jsonl, a URL, hf:NAME or hf:NAME:CONFIG, or a preset such as
    hf:wikitext."""
    format: RowFormat = "auto"
    """Shape of the rows; auto looks at the keys of each row."""
    weight: float = Field(default=1.0, gt=0)
    """Share of this source in the mix, relative to the others."""
    fields: FieldsConfig | None = None
    """Which fields mean what, for rows of no known shape."""
    split: str = "train"
    """Split of a Hugging Face dataset, such as train or train[:10%]."""
    revision: str | None = None
    """Commit, tag or branch of a Hugging Face dataset; null takes the newest and records its commit."""
    streaming: bool = False
    """Read over the network without storing the whole; needs max_rows."""
    max_rows: int | None = Field(default=None, ge=1)
    """Rows to read from this source at most, the first ones."""

    # Files are known by the digest of their content, see ``sources.source_digests``.
    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"path"})

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if (self.format == "mapped") and self.fields is None:
            raise ValueError("format: mapped needs fields, such as fields: {user: frage, assistant: antwort}")
        if self.fields is not None and self.format not in ("auto", "mapped"):
            raise ValueError(f"fields and format: {self.format} contradict each other; leave format out")
        if self.streaming and self.max_rows is None:
            raise ValueError("streaming needs max_rows: a stream has no end that a split could rely on")
        return self


class FormatConfig(Block):
    """How raw rows become conversations."""

    max_rejected: float = Field(default=0.05, ge=0, le=1)
    """Largest share of rows that may be unusable before the run stops."""
    deduplicate: bool = True
    """Keep one of every group of rows that are equal after normalisation."""
    near_duplicates: Literal["remove", "keep"] = "remove"
    """What becomes of rows whose wording is almost that of an earlier row."""
    near_threshold: float = Field(default=0.8, gt=0.5, le=1)
    """Similarity from which two texts count as near-duplicates: the share of three-word sequences in common."""
    near_numbers: Literal["distinct", "ignore"] = "distinct"
    """distinct: short texts with different numbers are never near-duplicates. ignore: numbers are words like others."""
    normalise: bool = True
    """Level Unicode composition, invisible characters, odd spaces and line ends; letters are never changed."""


class PiiConfig(Block):
    """What counts as personal or secret, and what happens to it."""

    action: Literal["report", "redact", "off"] = "report"
    """report: count and preview. redact: also replace by [EMAIL], [PHONE] and so on. off: do not look."""
    national_ids: dict[str, str] = {}
    """Extra patterns by name, regular expressions in RE2 syntax, such as {ghana_card: "GHA-\\d{9}-\\d"}."""


class ContaminationConfig(Block):
    """Benchmarks that training rows must not contain."""

    files: tuple[Place, ...] = ()
    """Benchmark files: any format a source may have."""
    ngram: int = Field(default=8, ge=3, le=50)
    """Words in a row that must agree; shorter benchmark items must be contained whole."""
    action: Literal["report", "remove"] = "report"
    """What becomes of rows that share such a sequence with a benchmark."""


class QualityConfig(Block):
    """What is looked for in the rows beyond their shape."""

    pii: PiiConfig = PiiConfig()
    """Personal data and secrets."""
    contamination: ContaminationConfig = ContaminationConfig()
    """Overlap with benchmarks."""
    languages: tuple[str, ...] = ()
    """Languages that rows should be in, as ISO 639-1 codes; rows in others are counted."""
    markers: dict[str, tuple[str, ...]] = {}
    """Words or letters that show a language or place, by name, such as {twi: [ɛ, ɔ]}; rows with one are counted."""
    balance_by: tuple[str, ...] = ()
    """Metadata fields whose values are counted; empty picks those with few different values."""


class SplitConfig(Block):
    """How conversations are divided."""

    strategy: Literal["random", "stratified", "group", "time", "content"] = "random"
    """random: row by row. stratified: equal shares of stratify_by everywhere. group: rows that share group_by stay
    together. time: oldest rows train, newest test. content: by a hash of the question, so that added rows never
    move old ones."""
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
    stratify_by: str | None = None
    """Metadata field whose values keep their shares in every split, for strategy stratified."""
    time_by: str | None = None
    """Metadata field with a date or time (ISO 8601, or a number), for strategy time."""
    near_threshold: float | None = Field(default=0.8, gt=0.5, le=1)
    """Questions at least this similar stay on one side; null looks at equal questions only."""
    near_numbers: Literal["distinct", "ignore"] = "distinct"
    """distinct: short questions with different numbers are never nearly equal. ignore: numbers are words like others."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if abs(self.train + self.val + self.test - 1) > 1e-6:
            raise ValueError(f"train + val + test must be 1, not {self.train + self.val + self.test:g}")
        needs = {"group": "group_by", "stratified": "stratify_by", "time": "time_by"}
        for strategy, key in needs.items():
            if (self.strategy == strategy) != (getattr(self, key) is not None):
                raise ValueError(f"strategy: {strategy} and {key} belong together; give both or neither")
        return self


class DatasetConfig(Block):
    """The dataset block of a training config; its path is a source when no sources are given."""

    path: Place = "data/splits/train.jsonl"
    """Training rows: anything a source may name."""
    validation_path: Place | None = None
    """Rows for validation; otherwise they are split off the training rows."""
    text_field: str = "text"
    """Field that holds the text of plain-text rows."""
    chat_template: ChatTemplateName = "gemma-3"
    """Template for tokenizers that bring none of their own."""
    num_proc: int = Field(default=2, ge=1, le=128)
    """Processes for data preparation, unless execution.workers says otherwise."""


class ExecutionConfig(Block):
    """Where the data phases compute; nothing here changes a result."""

    engine: Literal["local", "ray"] = "local"
    """local: processes on this machine. ray: a Ray cluster, which needs pip install "data-factory[ray]"."""
    workers: int | None = Field(default=None, ge=1, le=1024)
    """Processes at work at once; null uses dataset.num_proc locally and every core of a cluster."""
    address: str | None = None
    """Ray cluster to join, such as auto or ray://head:10001; null starts one on this machine."""

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"engine", "workers", "address"})

    @field_validator("address")
    @classmethod
    def _not_blank(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("is blank; leave it out to start a cluster on this machine")
        return value
