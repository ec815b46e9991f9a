"""The peak memory of a training step with an adapter.

A step peaks either where the output head computes its last logits, or where the backward pass is at work in a
block. Which of the two depends on the number of tokens, so both are counted and the larger one is taken. The
coefficients were counted from the operations of the stock engine (Transformers 5, PEFT 0.21, bitsandbytes 0.50)
and held against peaks measured on an H200: tests/bench/reports/2026-11-21-h200.md.

e is the hidden width, f the MLP's, q and kv those of queries and of keys, v the vocabulary, t the tokens of a
micro-batch; all activations are given in bytes per token.
"""

from typing import Literal, NamedTuple

from core.models.config import LoraConfig, ModelConfig
from core.models.fused.costs import tile_bytes
from core.models.resources.counting import (
    adapted,
    adapter_tensors,
    count_lora,
    count_packed_weights,
    count_parameters,
    linears,
)
from core.models.resources.fused import (
    fused_obstacle,
    home_bytes,
    layer_shapes,
    least_plan,
    work_bytes,
)
from core.models.resources.shapes import FAMILIES, ModelShape

MIB = 1024**2

# bitsandbytes keeps 4 bits a weight and one scale per 64 weights: float32, or with double quantization 8 bits
# and one float32 per 256 scales (arXiv:2305.14314, section 3).
FOUR_BIT_BYTES = 0.5 + 4 / 64
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)

CHUNK_NUMBERS = 1 << 26
"""Logits that exist at once: core.training.head computes them a chunk at a time."""
CHUNK_BYTES = 12.4
"""Bytes for each of them: the number, its float32 copy, its logarithm, and gradients that come and go."""
CUBLAS_BYTES = 64 * MIB
"""What the libraries of a GPU take for themselves, of the memory that PyTorch counts."""
UNSLOTH_BYTES = 128 * MIB
"""Unsloth's buffers: expanded weights, and inputs of blocks on their way to main memory and back."""
UNSLOTH_WINDOW = 512
"""Examples shorter than this it checkpoints without main memory."""
PAGED_FROM = 100_000
"""Elements from which bitsandbytes keeps a tensor's state in paged memory."""

ROUNDING_BYTES = 9
"""Bytes per weight of a matrix while it is rounded in training."""

Storage = Literal["4bit", "4bit+double", "8bit", "full"]
"""How the base is held."""

# State per trained parameter. 8-bit states have a float32 scale per 256.
OPTIMIZER_BYTES = {
    "adamw_8bit": 2 * (1 + 4 / 256),
    "adamw_torch": 8.0,
    "paged_adamw_8bit": 2 * (1 + 4 / 256),
    "paged_adamw_32bit": 8.0,
    "lion_8bit": 1 + 4 / 256,
    "sgd": 0.0,
}


class TrainingLoad(NamedTuple):
    """What one micro-step puts on the device."""

    micro_batch: int
    window: int
    """Tokens per row."""
    optimizer: str
    is_checkpointed: bool
    storage: Storage
    width: int
    """Bytes per number that is computed with, 2 or 4."""
    framework: str = "hf"
    offloads: bool = True
    """Checkpointing "unsloth", which that engine takes for: inputs of blocks wait in main memory."""
    is_packed: bool = False
    """Rows hold several examples, told apart by a mask."""
    is_aware: bool = False
    """Layers round their weights in every pass, as a quantized type does."""

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch."""
        return self.micro_batch * self.window


def storage_of(model: ModelConfig) -> Storage:
    """Say how a config holds the base while it is trained on."""
    if model.load_in_8bit:
        return "8bit"
    if not model.load_in_4bit:
        return "full"
    return "4bit+double" if model.bnb_4bit_use_double_quant else "4bit"


class Memory(NamedTuple):
    """Bytes by purpose, at the moment of their sum's peak."""

    weights: int
    adapter: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    logits: int = 0
    cache: int = 0
    """Keys and values of the tokens seen, while generating."""
    libraries: int = 0
    """Scratch space of the libraries."""

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def estimate_training(shape: ModelShape, lora: LoraConfig, load: TrainingLoad) -> Memory:
    """Estimate the peak of one training step with an adapter; its weights and gradients are float32.

    Fused layers are counted at their least, with all that may wait in main memory there; see ``find_outlook`` for
    what they add where there is room.

    An upper bound where examples are shorter than the window, or where prompts carry no loss.
    """
    trained = count_lora(shape, lora)
    fused = is_fused(shape, lora, load)
    activations, logits = (_of_fused if fused else _of_blocks)(shape, lora, load)
    in_homes = home_bytes(shape, lora, load.width) if fused and load.storage == "full" else 0
    return Memory(
        weights=held_weights(shape, load) + in_homes,
        adapter=4 * trained,
        gradients=4 * trained,
        optimizer=optimizer_bytes(shape, lora, load.optimizer),
        activations=int(activations),
        logits=int(logits),
        libraries=0 if load.width == 4 else CUBLAS_BYTES + UNSLOTH_BYTES * (load.framework == "unsloth"),
    )


def is_fused(shape: ModelShape, lora: LoraConfig, load: TrainingLoad) -> bool:
    """Tell whether the layers run as the fused engine's functions."""
    is_8bit = load.storage == "8bit"
    return load.framework == "fused" and fused_obstacle(shape, lora, is_8bit=is_8bit) is None


def _of_fused(shape: ModelShape, lora: LoraConfig, load: TrainingLoad) -> tuple[float, float]:
    """Count the activations and logits of fused layers that keep the least, or everything without checkpointing."""
    kept = least_plan(layer_shapes(shape, load.width), load.tokens, keeps_all=not load.is_checkpointed)
    in_layer, at_head = work_bytes(
        shape, lora, load.tokens, load.width, is_packed=load.storage != "full", fetches=kept.host_bytes > 0
    )
    if in_layer >= at_head:
        return kept.device_bytes + in_layer, 0
    logits = tile_bytes(load.tokens, shape.vocab, load.width)
    return kept.device_bytes + at_head - logits, logits


def _of_blocks(shape: ModelShape, lora: LoraConfig, load: TrainingLoad) -> tuple[float, float]:
    """Count the activations and logits of blocks that run by their own code, or unsloth's."""
    kept = load.tokens * _kept(shape, lora, load)
    at_head = load.tokens * _beside_head(shape, load), _head_bytes(shape, load)
    in_block = (
        load.tokens * _at_work(shape, lora, load) + _largest_weight(shape, lora, load) + _mask(shape, load)
    )
    return (kept + at_head[0], at_head[1]) if sum(at_head) > in_block else (kept + in_block, 0.0)


def held_weights(shape: ModelShape, load: TrainingLoad) -> int:
    """Count the bytes of the base while it is trained on.

    Of a quantized base the stock engine holds embeddings, norms and the head in float32, the others in 16 bits.
    """
    return stored_weights(shape, load.width if _keeps_width(load) else 4, load.storage)


def _keeps_width(load: TrainingLoad) -> bool:
    return load.storage == "full" or load.framework in ("unsloth", "fused")


def stored_weights(shape: ModelShape, width: int, storage: Storage = "full") -> int:
    """Count the bytes of the base: linear layers as ``storage`` says, everything else at ``width``."""
    total = count_parameters(shape)
    packed = count_packed_weights(shape)
    per_weight = {"4bit": FOUR_BIT_BYTES, "4bit+double": NF4_BYTES, "8bit": 1.0, "full": float(width)}
    return int(packed * per_weight[storage]) + (total - packed) * width


def optimizer_bytes(shape: ModelShape, lora: LoraConfig, name: str) -> int:
    """Count the bytes of an optimizer's state on the device.

    Adafactor keeps the rows' and the columns' means of a matrix (arXiv:1804.04235, section 3). Of a paged
    optimizer only small tensors' states are sure to stay on the device.
    """
    sizes = adapter_tensors(shape, lora)
    if name == "adafactor":
        return 4 * shape.layers * sum(lora.r + size // lora.r for size in sizes)
    if name.startswith("paged"):
        sizes = [size for size in sizes if size < PAGED_FROM]
    return int(OPTIMIZER_BYTES[name] * shape.layers * sum(sizes))


# Bytes per token


def _kept(shape: ModelShape, lora: LoraConfig, load: TrainingLoad) -> float:
    """Count what waits for the backward pass: with checkpointing each block's input, else all that a block keeps."""
    if not load.is_checkpointed:
        return shape.layers * _block(shape, lora, load)
    if load.framework == "unsloth" and load.offloads and load.window >= UNSLOTH_WINDOW:
        return 0.0
    return shape.layers * shape.hidden * _residual(load)


def _residual(load: TrainingLoad) -> int:
    """Return the bytes of a number between blocks: where embeddings are float32, so is all they are added to."""
    return load.width if _keeps_width(load) else 4


def _block(shape: ModelShape, lora: LoraConfig, load: TrainingLoad) -> float:
    """Count what one block keeps for its backward pass; attention keeps nothing quadratic."""
    if load.framework == "unsloth":
        return _block_of_unsloth(shape)
    names = adapted(shape, lora)
    family, e, f, w = FAMILIES[shape.family], shape.hidden, shape.intermediate, load.width
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 4 * (family.n_norms * e + (q + kv if family.has_head_norms else 0))
    # An adapter keeps its input; at 16 bits that is a copy of each layer's own.
    inputs = e * (sum(n_in == e and name != "o_proj" for name, (n_in, _) in names.items()) if w == 2 else 1)
    if load.storage != "full" and w == 2:
        # Gate, activation and up are float32, as is whatever enters a quantized layer; what attention reads is not.
        mlp, attention = 12 * f + 2 * f * ("down_proj" in names), w * (2 * q + 2 * kv)
    else:
        mlp, attention = w * (3 * f + f * ("down_proj" in names)), w * (q + 2 * (q + 2 * kv))
    block = mlp + attention + norms + w * inputs
    if family.is_masked or load.is_packed:
        block += w * 2 * (q - kv)
    if lora.use_dora:
        # The base's product, the adapter's, and their sum before it is scaled.
        block += 3 * w * sum(n_out for _, n_out in names.values())
    # bitsandbytes' 8-bit product keeps its input, which the 4-bit one does not.
    return block + (4 * (2 * e + q + f) if load.storage == "8bit" else 0)


def _block_of_unsloth(shape: ModelShape) -> float:
    """Count what a block of unsloth keeps: inputs, gate and up, no copies for the adapter."""
    q = shape.heads * shape.head_dim
    return 4 * shape.intermediate + 13 * shape.hidden + 2 * q + _head_norms(shape)


def _head_norms(shape: ModelShape) -> int:
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return 4 * (q + kv) if FAMILIES[shape.family].has_head_norms else 0


def _at_work(shape: ModelShape, lora: LoraConfig, load: TrainingLoad) -> float:
    """Count what the backward pass needs in one block beside what waits: the block itself, and two gradients."""
    if load.framework == "unsloth":
        return (
            10 * shape.intermediate
            + 22 * shape.hidden
            + 6 * shape.heads * shape.head_dim
            + _head_norms(shape)
        )
    gradients = 8 * shape.intermediate + _residual(load) * shape.hidden
    return gradients + (_block(shape, lora, load) if load.is_checkpointed else 0)


def _beside_head(shape: ModelShape, load: TrainingLoad) -> int:
    """Count the last norm's input, its output, and the copy of it that the head reads."""
    return shape.hidden * (4 + 2 * _residual(load))


def _head_bytes(shape: ModelShape, load: TrainingLoad) -> float:
    """Count a chunk of logits in bytes, and where the head is float32 its copy to compute with."""
    copy = shape.vocab * shape.hidden * 2 if load.width == 2 and not _keeps_width(load) else 0
    return CHUNK_BYTES * min(CHUNK_NUMBERS, load.tokens * shape.vocab) + copy


def _largest_weight(shape: ModelShape, lora: LoraConfig, load: TrainingLoad) -> int:
    """Count the bytes of the largest weight as it is expanded for a multiplication, and what DoRA makes of it.

    Rounding takes two float32 copies at once, and a scale per block of 32 a few times over (measured).
    """
    largest = max(n_in * n_out for n_in, n_out in linears(shape).values())
    expanded = 0 if load.storage == "full" else load.width * largest
    if load.is_aware:
        expanded = max(expanded, ROUNDING_BYTES * largest)
    return expanded + (8 * largest if lora.use_dora else 0)


def _mask(shape: ModelShape, load: TrainingLoad) -> int:
    """Count the bytes of a mask [b, 1, s, s], and of its 16-bit copy that is added to the scores."""
    is_masked = load.is_packed or FAMILIES[shape.family].is_masked
    return 3 * load.micro_batch * load.window**2 if is_masked else 0
