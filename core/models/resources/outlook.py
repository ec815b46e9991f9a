"""What the fused engine will do with the memory of a card: how many rows at once, and what waits where."""

from typing import NamedTuple

from core.models.config import LoraConfig
from core.models.fused.policy import (
    H200,
    Place,
    Plan,
    Rates,
    choose_micro_batch,
    divisors,
    plan_with_expansions,
)
from core.models.resources.fused import extended, layer_shapes, least_plan, work_bytes
from core.models.resources.shapes import ModelShape
from core.models.resources.training import Memory, TrainingLoad, estimate_training, is_fused

ITEMS = ("qkv", "attention", "residual", "gate_up", "attention_out")
"""What a layer may keep; its input always waits somewhere. Only Gemma's have the last."""
GB = 1024**3


class Outlook(NamedTuple):
    """What a fused run will do."""

    micro_batch: int
    kept: Plan
    need: Memory
    """With what is kept on the GPU."""
    expanded: int = 0
    """Layers whose 4-bit weights stay expanded."""

    @property
    def words(self) -> str:
        """Say it in half a sentence."""
        layers = len(self.kept.policies)
        which = "every layer" if self.expanded == layers else f"{self.expanded} of {layers} layers"
        weights = f", weights of {which} expanded" if self.expanded else ""
        return f"{kept_words(self.kept)}{weights}, in micro-batches of {self.micro_batch}"


def find_outlook(
    shape: ModelShape,
    lora: LoraConfig,
    load: TrainingLoad,
    *,
    per_step: int,
    free: int,
    host: int,
    budget: float | None,
    rates: Rates = H200,
) -> Outlook | None:
    """Plan as the engine will when it trains.

    Args:
        shape: The base.
        lora: The adapter.
        load: What the config asks for.
        per_step: Rows of an optimizer step.
        free: Bytes of the GPU for everything that ``estimate_training`` counts.
        host: Bytes of main memory that may be locked.
        budget: GiB that may be kept on the GPU; None fills what is free and chooses the micro-batch.
        rates: How fast the GPU is.

    Returns:
        None for a model whose layers run by their own code.
    """
    if not is_fused(shape, lora, load):
        return None
    layers = layer_shapes(shape, load.width)
    least = estimate_training(shape, lora, load)
    if not load.is_checkpointed:
        return Outlook(load.micro_batch, least_plan(layers, load.tokens, keeps_all=True), least)
    size, is_packed = load.micro_batch, load.storage != "full"
    expansions = (sum(extended(shape, lora, load.width)),) * shape.layers if is_packed else ()
    if budget is None:
        size = choose_micro_batch(
            divisors(per_step), size, per_step, load.window, layers, free - _beside(shape, lora, load, least), host,
            rates, expansions=expansions, vocabulary=shape.vocab,
        )  # fmt: skip
        load = load._replace(micro_batch=size)
        least = estimate_training(shape, lora, load)
    room = free - least.total if budget is None else int(budget * GB)
    held = plan_with_expansions(layers, expansions, load.tokens, load.window, max(0, room), host, rates)
    need = least._replace(activations=least.activations + held.device_bytes)
    return Outlook(size, held.plan, need, held.expanded)


def _beside(shape: ModelShape, lora: LoraConfig, load: TrainingLoad, least: Memory) -> int:
    """Count what a step takes however many rows it has at once: weights, states, scratch."""
    is_packed = load.storage != "full"
    scratch, _ = work_bytes(shape, lora, 0, load.width, is_packed=is_packed, fetches=True)
    return least.total - least.activations - least.logits + scratch


def kept_words(kept: Plan) -> str:
    """Say which tensors of how many layers wait for the backward pass, and where."""
    layers, by_count = len(kept.policies), dict[int, list[str]]()
    is_gemma = any(policy.attention_out is not Place.DEVICE for policy in kept.policies)
    for item in ITEMS if is_gemma else ITEMS[:-1]:
        count = sum(getattr(policy, item) is not Place.RECOMPUTE for policy in kept.policies)
        by_count.setdefault(count, []).append(item)
    told = [
        f"{listed(names)} of {'every layer' if count == layers else f'{count} of {layers} layers'}"
        for count, names in sorted(by_count.items(), reverse=True)
        if count
    ]
    what = "everything of every layer" if list(by_count) == [layers] else listed(told)
    places = (f"{kept.device_bytes / GB:.1f} GB on the GPU", f"{kept.host_bytes / GB:.1f} GB in main memory")
    sizes = [
        place for place, count in zip(places, (kept.device_bytes, kept.host_bytes), strict=True) if count
    ]
    return f"keeps {what or 'the inputs of layers alone'}: {', '.join(sizes)}"


def listed(names: list[str]) -> str:
    """Join words as a sentence does."""
    return " and ".join(part for part in (", ".join(names[:-1]), *names[-1:]) if part)
