"""What a run knows about its model: all that its card is made of."""

from typing import Literal

from core.config import Frozen
from core.data.reports import IngestReport, SplitReport
from core.deployment.card_schema import Method
from core.deployment.config import DeploymentConfig
from core.deployment.reports import Smoke
from core.evaluation.reports import EvalReport
from core.models.config import LoraConfig, ModelConfig
from core.training.config import TrainingConfig
from core.training.reports import TrainReport


class BaseFacts(Frozen):
    """The base model."""

    id: str
    """Hub id, or the name of a local model."""
    provider: str
    """Who published it; "local" for a folder on this machine."""
    architecture: str
    parameters: int


class GateNote(Frozen):
    """What a gate said."""

    name: str
    state: Literal["passed", "blocked", "waived"]
    summary: str
    """One line with the numbers; for a waived gate also who waived it and why."""


class CardFacts(Frozen):
    """Everything the card is made of: settings, and the reports of the phases."""

    name: str
    version: str
    base: BaseFacts
    method: Method
    deployment: DeploymentConfig
    ingest: IngestReport
    split: SplitReport
    model: ModelConfig
    lora: LoraConfig
    training: TrainingConfig
    trained: TrainReport
    baseline: EvalReport
    """The untrained base, asked in the way that the gate compared with."""
    arms: tuple[EvalReport, ...] = ()
    """The base in every way it was asked, this one among them."""
    tuned: EvalReport
    shipped: EvalReport
    """Scores of the very GGUF file in the bundle."""
    gguf_type: str
    gguf_story: tuple[str, ...] = ()
    """What quantization changed, and which other types were tried; whole sentences."""
    gguf_bytes: int
    stop_tokens: tuple[str, ...]
    smoke: Smoke
    smoke_device: Literal["cpu", "gpu"] = "cpu"
    """What the smoke question ran on."""
    hardware: str | None = None
    """What training ran on."""
    gates: tuple[GateNote, ...] = ()
    created_at: str
    """ISO 8601."""
    created_by: str | None = None
