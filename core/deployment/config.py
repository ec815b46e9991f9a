"""Settings of the deployment room."""

from typing import ClassVar, Literal

from pydantic import Field

from core.config import Block
from core.quantization.config import GgufType


class DeploymentConfig(Block):
    """What goes into the bundle and onto its model card."""

    format: GgufType | Literal["smallest"] = "smallest"
    """The GGUF file to ship; smallest takes the smallest one that is good enough."""
    registered_name: str | None = None
    """Name in the model registry; null uses the run's name."""
    alias: str = "champion"
    """Registry alias the deployed version gets."""
    system_prompt: str | None = None
    """Put before every conversation when serving."""
    temperature: float = Field(default=0.0, ge=0, le=2)
    """Recommended sampling temperature."""
    max_tokens: int = Field(default=256, ge=1)
    """Recommended longest answer."""
    context_length: int = Field(default=1024, ge=128)
    """Context window when serving."""
    threads: int | None = Field(default=None, ge=1, le=1024)
    """Threads of llama.cpp, in evaluation and serving; null takes one per physical core."""
    domain: str = "general"
    """Subject area, for the model card."""
    languages: tuple[str, ...] = ("en",)
    """Languages of the data, for the model card."""
    primary_use: str = "Answering questions in the domain of its training data."
    """Intended use, for the model card."""
    users: tuple[str, ...] = ("people who tested it on their own questions first",)
    """Intended users, for the model card."""
    out_of_scope: tuple[str, ...] = ("Decisions about health, law or money without a person's check.",)
    """Uses to avoid, for the model card."""
    license: str | None = None
    """Licence of the resulting model."""

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset({"threads"})
