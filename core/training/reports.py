"""The numbers of a finished training run."""

from core.config import Frozen


class EvalLoss(Frozen):
    """Mean loss per trained token on the validation split."""

    step: int
    loss: float


class TrainReport(Frozen):
    """What training did and whether it converged."""

    base_digest: str
    """Digest of the base model's folder."""
    train_digest: str
    """Digest of the training file."""
    adapter_digest: str
    merged_digest: str
    steps: int
    """Optimizer steps done."""
    total_steps: int
    """Optimizer steps planned."""
    epochs: float
    samples: int
    """Examples in the training split."""
    truncated: int
    """Examples longer than the model's window."""
    tokens: int
    """Tokens that carried loss, all steps together."""
    first_loss: float
    """Mean training loss of the first window of steps."""
    final_loss: float
    """Mean training loss of the last window of steps."""
    window: int
    """Steps in a window."""
    eval_losses: tuple[EvalLoss, ...]
    """Validation loss by step, oldest first."""
    trainable_parameters: int
    parameters: int
    merged_eval_loss: float | None = None
    """Validation loss of the merged model; the kept adapter's own was measured on the base as it was held."""
    merge_error: float
    """Largest logit difference between base + adapter and the merged model."""
    unmerge_error: float = 0.0
    """Largest change of a folded weight after the adapter was taken out again, over the weight's own size."""
    kept_step: int | None = None
    """Step whose adapter was kept: the lowest validation loss, or the last one; null in old reports."""
    stopped_early: bool = False
    """Training ended before its plan because the validation loss stopped falling."""
    micro_batch: int = 0
    """Examples per forward pass at the end; smaller than asked if memory ran out."""
    accumulation: int = 0
    """Forward passes per optimizer step at the end."""
    shrinks: int = 0
    """Times that the micro-batch was halved because memory ran out."""
    peak_memory_bytes: int = 0
    """Most memory allocated on the GPU; on a CPU the process's largest resident size."""
    tokens_per_second: float = 0.0
    """Tokens read, padding left out, over the seconds of training without validation."""
    framework: str = "hf"
    """Engine that trained."""
    base_format: str = ""
    """How the base was held: nf4+double, fp4, int8, bfloat16 and so on."""
    quantization_aware: str | None = None
    """Type whose rounding was part of every forward pass, and is of the merged weights."""
    seconds: float
    device: str
    """What it ran on: cpu, or the name of the GPU."""
    error: str | None
    """What killed training, if anything."""


class LoraLayer(Frozen):
    """One adapted layer, W + scale B A."""

    name: str
    rank: int
    """r, as configured."""
    norm_a: float
    """Frobenius norm of A."""
    norm_b: float
    """Frobenius norm of B."""
    norm_update: float
    """Frobenius norm of scale B A."""
    effective_rank: float
    """exp(-sum s ln s) over the shares s of its singular values: how many directions are really used."""
    top: tuple[float, ...]
    """Largest singular values of scale B A."""


class LoraAnalysis(Frozen):
    """What every layer of an adapter learned."""

    scale: float
    layers: tuple[LoraLayer, ...]
