"""What a measuring process found, and when its speed may be shown."""

from core.config import Frozen

LOSS_TOLERANCE = 1e-3
"""Largest relative difference of the loss from the reference's."""
LEAST_COSINE = 0.999
"""Smallest cosine between a tensor's gradient and the reference's."""
LEAST_OF_ALL = 0.98
"""A stock engine farther from float32 than this is broken, and no measure for others."""
RULE = (
    f"cosine >= {LEAST_COSINE:g}, or, where hf measured beside it stays below {LEAST_COSINE:g} itself "
    f"(never below {LEAST_OF_ALL:g}), at least hf's"
)
"""What ``bar_of`` and ``refusal`` ask of every adapter tensor's gradient, in words."""


class Parity(Frozen):
    """Loss and gradients of one batch beside those of the float32 reference."""

    loss: float | None
    """None if it was not a number."""
    reference_loss: float
    worst_cosine: float
    """Over the adapter's tensors; 0 where a gradient is missing, zero or not a number."""
    worst_tensor: str
    tensors: int

    @property
    def loss_error(self) -> float:
        """Return the relative difference of the loss; 1 if it was not a number."""
        if self.loss is None:
            return 1.0
        return abs(self.loss - self.reference_loss) / max(abs(self.reference_loss), 1e-12)


class Speed(Frozen):
    """The timed steps, of one process or of several rounds."""

    step_ms: tuple[float, ...]
    """Every step: zero the gradients, forward, backward, optimizer."""
    wall_ms: float
    """Wall clock of all of them up to the last kernel, per step."""
    tokens: int
    """Per step; there is no padding."""
    labelled: int
    """Of them, learned ones."""


class Memory(Frozen):
    """Bytes."""

    loaded: int
    """Allocated before the first step: base and adapter."""
    allocated: int
    """Peak of the timed steps; without a GPU the resident size of the process."""
    reserved: int
    """Peak of what the allocator held."""
    pinned: int
    """Peak of page-locked main memory."""
    first: int
    """Peak of the steps before: compilation and choice of algorithms."""


class OpClass(Frozen):
    """Kernels of one kind, per step."""

    name: str
    ms: float
    launches: float
    floor_ms: float | None = None
    """Least time for what the model's shape makes necessary; None where nothing of the kind is."""
    rate: str = ""
    """What the kernels themselves reached."""


class Profile(Frozen):
    """Where the time of a step goes."""

    step_ms: float
    """From the first kernel to the last; profiling makes the gaps longer."""
    gemm_tflops: float
    """Largest rate of the model's own products, measured alone: what floors are computed with."""
    classes: tuple[OpClass, ...]
    trace: str


class Measured(Frozen):
    """Everything about one system in one process."""

    system: str
    error: str | None = None
    """Why there are no figures."""
    parity: Parity | None = None
    speed: Speed | None = None
    memory: Memory | None = None
    first_loss: float | None = None
    last_loss: float | None = None
    profile: Profile | None = None
    notes: tuple[str, ...] = ()
    machine: dict[str, str] = {}


def worse(one: Parity, other: Parity) -> Parity:
    """Put two runs of the same batch together: the loss farther from the reference's, and the smaller cosine."""
    loss = max(one, other, key=lambda each: (each.loss is None, each.loss_error))
    gradient = min(one, other, key=lambda each: each.worst_cosine)
    return gradient.model_copy(update={"loss": loss.loss, "reference_loss": loss.reference_loss})


def bar_of(stock: Parity | None) -> float:
    """Return the cosine to reach: ``LEAST_COSINE``, or the stock engine's own where even that stays below.

    Rounding to 16 bits grows with depth: on random weights of the shape of Llama-3.1-8B no system reaches 0.999, the
    stock engine no more than the fused one. Then a system must be at least as near to float32 as the stock engine.

    Args:
        stock: How near hf came on the same base and batch; None if it was not measured.
    """
    if stock is None or stock.loss is None or stock.worst_cosine < LEAST_OF_ALL:
        return LEAST_COSINE
    return min(LEAST_COSINE, stock.worst_cosine)


def refusal(measured: Measured, bar: float = LEAST_COSINE) -> str | None:
    """Say why a system's speed may not be shown; None if it computes what the reference does.

    Args:
        measured: What was found.
        bar: From ``bar_of``.
    """
    parity = measured.parity
    if parity is None:
        return "not compared with the reference"
    if parity.loss is None:
        return "its loss is not a number"
    if parity.loss_error > LOSS_TOLERANCE:
        return f"loss {parity.loss:.6g} is not the reference's {parity.reference_loss:.6g} within {LOSS_TOLERANCE:g}"
    if parity.worst_cosine < bar:
        beside = "" if bar == LEAST_COSINE else ", which hf reaches"
        return (
            f"gradient cosine {parity.worst_cosine:.5f} of {parity.worst_tensor} is below {bar:.5g}{beside}"
        )
    return None
