"""How a step's rows meet the memory there is: what the fused layers may keep, and how many rows go at once."""

from peft import PeftModel

from core.models.fused.state import fused_state
from core.training.config import TrainingConfig
from core.training.memory import MicroBatches
from core.training.rows import Rows

GIB = 1024**3


def make_room(model: PeftModel, config: TrainingConfig, rows: Rows, shrinks: int = 0) -> MicroBatches:
    """Settle the micro-batches of a run.

    Fused layers know what a micro-batch costs: with ``activation_budget: auto`` they choose its size among those
    that cut a step into equal parts, and when memory runs out they keep less before it is halved. No choice changes
    a result beyond the order of sums.

    Args:
        model: With an adapter.
        config: The training block.
        rows: What is trained on.
        shrinks: Times that the micro-batch was halved already, by the run that is resumed.
    """
    size = config.per_device_train_batch_size
    per_step = size * config.gradient_accumulation_steps
    state = fused_state(model)
    if state and config.activation_budget == "auto":
        size = state.best_micro_batch(per_step, rows.longest, size)
    elif state:
        state.activation_bytes = int(config.activation_budget * GIB)
    relief = state.give_way if state else None
    return MicroBatches(
        size, per_step // size, may_shrink=config.shrink_on_oom, shrinks=shrinks, relief=relief
    )
