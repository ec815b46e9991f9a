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
    merge_error: float
    """Largest logit difference between base + adapter and the merged model."""
    seconds: float
    device: str
    """What it ran on: cpu, or the name of the GPU."""
    error: str | None
    """What killed training, if anything."""
