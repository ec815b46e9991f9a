"""How much memory and disk a model needs, from its published shape alone; no framework is loaded.

Everything is counted from the numbers in a model's config.json. The estimates are upper bounds for
examples that fill the window; they exist so that a run which cannot fit is refused before it starts.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from core.models.config import LoraConfig

GB = 1024**3

# NF4 (arXiv:2305.14314): 4 bits a weight, one 8-bit scale per 64 weights (double quantization),
# one float32 per 256 scales.
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)

# Bytes per weight of the GGUF block formats: block size in bytes over weights in a block.
GGUF_BYTES = {
    "f16": 2.0,
    "bf16": 2.0,
    "Q8_0": 34 / 32,
    "Q6_K": 210 / 256,
    "Q5_K_M": 176 / 256,
    "Q4_K_M": 144 / 256,
}

OPTIMIZER_BYTES = {"adamw_8bit": 2.0, "adamw_torch": 8.0, "sgd": 0.0, "adafactor": 0.1}
"""State per trained parameter; Adafactor keeps rows and columns only."""


class VisionShape(NamedTuple):
    """A SigLIP image tower as Gemma 3 carries it; text runs load it too."""

    hidden: int = 1152
    layers: int = 27
    intermediate: int = 4304
    image: int = 896
    patch: int = 14


class ModelShape(NamedTuple):
    """The numbers that decide a decoder's size."""

    family: str
    """Its model_type, which names the entry of FAMILIES."""
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    is_tied: bool
    """The output head is the embedding."""
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    vision: VisionShape | None = None


class Family(NamedTuple):
    """What a model_type fixes without saying so in config.json."""

    n_norms: int = 2
    """Norms of the hidden width in a block."""
    has_head_norms: bool = False
    """Queries and keys are normalised per head."""
    is_fused: bool = False
    """q, k, v are one linear layer, gate and up another."""
    defaults: Mapping[str, Any] = {}
    """Keys that published config.json files of the family leave out."""


GEMMA3_DEFAULTS = {
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "vocab_size": 262_208,
    "tie_word_embeddings": True,
}

FAMILIES: dict[str, Family] = {
    "llama": Family(),
    "mistral": Family(),
    "granite": Family(),
    "smollm3": Family(defaults={"tie_word_embeddings": True}),
    "phi3": Family(is_fused=True),
    "qwen2": Family(defaults={"qkv_bias": True}),
    "qwen3": Family(has_head_norms=True, defaults={"head_dim": 128}),
    "gemma": Family(defaults={"tie_word_embeddings": True}),
    "gemma2": Family(n_norms=4, defaults={"tie_word_embeddings": True}),
    "gemma3_text": Family(n_norms=4, has_head_norms=True, defaults=GEMMA3_DEFAULTS),
}

SIGLIP = VisionShape()

PUBLISHED: dict[str, ModelShape] = {
    "google/gemma-3-1b-it": ModelShape("gemma3_text", 1152, 26, 4, 1, 256, 6912, 262_144, True),
    "google/gemma-3-4b-it": ModelShape(
        "gemma3_text", 2560, 34, 8, 4, 256, 10240, 262208, True, vision=SIGLIP
    ),
    "google/gemma-3-12b-it": ModelShape(
        "gemma3_text", 3840, 48, 16, 8, 256, 15360, 262208, True, vision=SIGLIP
    ),
    "google/gemma-3-27b-it": ModelShape(
        "gemma3_text", 5376, 62, 32, 16, 128, 21504, 262208, True, vision=SIGLIP
    ),
    "meta-llama/Llama-3.1-8B-Instruct": ModelShape("llama", 4096, 32, 32, 8, 128, 14_336, 128_256, False),
    "meta-llama/Llama-3.2-1B-Instruct": ModelShape("llama", 2048, 16, 32, 8, 64, 8192, 128_256, True),
    "meta-llama/Llama-3.2-3B-Instruct": ModelShape("llama", 3072, 28, 24, 8, 128, 8192, 128_256, True),
    "mistralai/Mistral-7B-Instruct-v0.3": ModelShape("mistral", 4096, 32, 32, 8, 128, 14_336, 32_768, False),
    "Qwen/Qwen2.5-7B-Instruct": ModelShape("qwen2", 3584, 28, 28, 4, 128, 18_944, 152_064, False, True),
    "Qwen/Qwen3-0.6B": ModelShape("qwen3", 1024, 28, 16, 8, 128, 3072, 151_936, True),
    "Qwen/Qwen3-1.7B": ModelShape("qwen3", 2048, 28, 16, 8, 128, 6144, 151_936, True),
    "Qwen/Qwen3-4B": ModelShape("qwen3", 2560, 36, 32, 8, 128, 9728, 151_936, True),
    "Qwen/Qwen3-8B": ModelShape("qwen3", 4096, 36, 32, 8, 128, 12_288, 151_936, False),
    "Qwen/Qwen3-14B": ModelShape("qwen3", 5120, 40, 40, 8, 128, 17_408, 151_936, False),
    "microsoft/Phi-3-mini-4k-instruct": ModelShape("phi3", 3072, 32, 32, 32, 96, 8192, 32_064, False),
    "microsoft/phi-4": ModelShape("phi3", 5120, 40, 40, 10, 128, 17_920, 100_352, False),
}
"""Shapes as their publishers give them, for Hub ids whose config.json is not on this machine."""

# Endings that name a variant of the same size: tuned, context length, storage, release.
_VARIANT = re.compile(r"-(it|pt|instruct|base|chat|hf|unsloth|bnb|4bit|4k|128k|bf16|v0\.\d|\d{4})(?=-|$)")


def published_shape(name: str) -> ModelShape | None:
    """Look up a Hub id, or a variant of one such as ``unsloth/gemma-3-4b-it-bnb-4bit``."""
    return next((shape for known, shape in PUBLISHED.items() if _stem(known) == _stem(name)), None)


def _stem(name: str) -> str:
    return _VARIANT.sub("", name.rsplit("/", 1)[-1].lower()).removeprefix("meta-")


def shape_from_config(config: Mapping[str, Any]) -> ModelShape | None:
    """Read the shape out of a model's config.json.

    Args:
        config: The parsed file; a multimodal one is read through its ``text_config``.

    Returns:
        The shape, or None for a family whose size is not known here.
    """
    if config.get("model_type") == "gemma3":
        text = {"model_type": "gemma3_text", **config.get("text_config", {})}
        shape = shape_from_config(text)
        return shape and shape._replace(vision=_vision(config.get("vision_config", {})))
    family = str(config.get("model_type"))
    if family not in FAMILIES:
        return None
    merged = {**FAMILIES[family].defaults, **{k: v for k, v in config.items() if v is not None}}
    try:
        return _shape(family, merged)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _shape(family: str, config: Mapping[str, Any]) -> ModelShape:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    bias = bool(config.get("attention_bias", False))
    return ModelShape(
        family=family,
        hidden=hidden,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads", heads)),
        head_dim=int(config.get("head_dim", hidden // heads)),
        intermediate=int(config["intermediate_size"]),
        vocab=int(config["vocab_size"]),
        is_tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bool(config.get("qkv_bias", bias)),
        o_bias=bias and family != "qwen2",
        mlp_bias=bool(config.get("mlp_bias", False)),
    )


def _vision(config: Mapping[str, Any]) -> VisionShape:
    keys = ("hidden_size", "num_hidden_layers", "intermediate_size", "image_size", "patch_size")
    return VisionShape(*(int(config.get(key, usual)) for key, usual in zip(keys, SIGLIP, strict=True)))


def linears(shape: ModelShape) -> dict[str, tuple[int, int]]:
    """Name the linear layers of one block with their (inputs, outputs)."""
    e, f = shape.hidden, shape.intermediate
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    if FAMILIES[shape.family].is_fused:
        inner = {"qkv_proj": (e, q + 2 * kv), "gate_up_proj": (e, 2 * f)}
    else:
        inner = {
            "q_proj": (e, q),
            "k_proj": (e, kv),
            "v_proj": (e, kv),
            "gate_proj": (e, f),
            "up_proj": (e, f),
        }
    return {**inner, "o_proj": (q, e), "down_proj": (f, e)}


def count_block_weights(shape: ModelShape) -> int:
    """Count the weights of all blocks' linear layers: the ones that 4-bit storage shrinks."""
    return shape.layers * sum(n_in * n_out for n_in, n_out in linears(shape).values())


def count_parameters(shape: ModelShape) -> int:
    """Count every parameter, the image tower included.

    v e (twice when untied) + layers x (e h d + 2 e g d + h d e + 3 e f + norms + biases) + e.
    """
    family = FAMILIES[shape.family]
    e, d = shape.hidden, shape.head_dim
    q, kv = shape.heads * d, shape.kv_heads * d
    norms = family.n_norms * e + (2 * d if family.has_head_norms else 0)
    biases = (q + 2 * kv) * shape.qkv_bias + e * shape.o_bias + (2 * shape.intermediate + e) * shape.mlp_bias
    tables = shape.vocab * e * (1 if shape.is_tied else 2)
    body = count_block_weights(shape) + shape.layers * (norms + biases) + e
    return tables + body + (_count_vision(shape.vision, e) if shape.vision else 0)


def _count_vision(vision: VisionShape, text_hidden: int) -> int:
    e, f = vision.hidden, vision.intermediate
    patches = (vision.image // vision.patch) ** 2
    embeddings = 3 * vision.patch**2 * e + e + patches * e
    biases_and_norms = 4 * e + f + e + 4 * e
    projector = e * text_hidden + e
    return embeddings + _count_vision_blocks(vision) + vision.layers * biases_and_norms + 2 * e + projector


def _count_vision_blocks(vision: VisionShape) -> int:
    return vision.layers * (4 * vision.hidden**2 + 2 * vision.hidden * vision.intermediate)


def count_lora(shape: ModelShape, lora: LoraConfig) -> int:
    """Count the adapter's parameters: rank x (inputs + outputs) of every adapted layer."""
    attention = {"q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj"}
    sizes = [
        n_in + n_out
        for name, (n_in, n_out) in linears(shape).items()
        if name in lora.target_modules
        and (lora.finetune_attention_modules if name in attention else lora.finetune_mlp_modules)
    ]
    return shape.layers * lora.r * sum(sizes)


class TrainingLoad(NamedTuple):
    """What one micro-step puts on the device."""

    micro_batch: int
    window: int
    """Tokens per example."""
    optimizer: str
    is_checkpointed: bool
    is_4bit: bool
    width: int
    """Bytes per number of the base's weights, 2 or 4."""


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

    @property
    def total(self) -> int:
        """All of it."""
        return sum(self)


def estimate_training(shape: ModelShape, lora: LoraConfig, load: TrainingLoad) -> Memory:
    """Estimate the peak of one training step with an adapter.

    The adapter and its gradient are float32. Over a 4-bit base everything else (embeddings, norms, the
    head) is float32 as well. Beside the logits [b, s, v] the loss holds three float32 tensors of that size.
    """
    trained = count_lora(shape, lora)
    tokens = load.micro_batch * load.window
    return Memory(
        weights=stored_weights(shape, load.width, load.is_4bit),
        adapter=4 * trained,
        gradients=4 * trained,
        optimizer=int(OPTIMIZER_BYTES[load.optimizer] * trained),
        activations=tokens * _activation_bytes(shape, load),
        logits=tokens * shape.vocab * (load.width + 12),
    )


def stored_weights(shape: ModelShape, width: int, is_4bit: bool) -> int:
    """Count the bytes of the base: all at ``width``, or the linear layers in NF4 and the rest in float32."""
    total = count_parameters(shape)
    if not is_4bit:
        return total * width
    packed = count_block_weights(shape) + (_count_vision_blocks(shape.vision) if shape.vision else 0)
    return int(packed * NF4_BYTES) + (total - packed) * 4


def _activation_bytes(shape: ModelShape, load: TrainingLoad) -> int:
    """Count what the backward pass keeps for one token.

    A block keeps q, k, v before and after rotation, the attention's output, four tensors of the MLP, a
    float32 tensor a norm, and the linear layers' inputs, which at 16 bits are copies; attention itself keeps
    nothing quadratic. With checkpointing only each block's input stays, plus one block at work.
    """
    family, e = FAMILIES[shape.family], shape.hidden
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    inputs = 5 * e if load.width == 2 else e
    norms = family.n_norms * e + (q + kv if family.has_head_norms else 0)
    block = load.width * (4 * shape.intermediate + q + 2 * (q + 2 * kv) + inputs) + 4 * norms
    if not load.is_checkpointed:
        return block * shape.layers
    residual = 4 if load.is_4bit else load.width
    return residual * e * shape.layers + 2 * block


def estimate_inference(shape: ModelShape, width: int, *, batch: int, window: int) -> Memory:
    """Estimate generation in full precision: weights, keys and values of the window, one row of logits."""
    keys_values = 2 * shape.kv_heads * shape.head_dim * shape.layers * width
    return Memory(
        weights=stored_weights(shape, width, is_4bit=False),
        cache=batch * window * keys_values,
        logits=batch * shape.vocab * (width + 4),
    )


def estimate_merge(shape: ModelShape, lora: LoraConfig, width: int) -> Memory:
    """Estimate folding the adapter in: the base in full precision, and one block's update at a time."""
    update = max(n_in * n_out for n_in, n_out in linears(shape).values())
    return Memory(
        weights=stored_weights(shape, width, is_4bit=False),
        adapter=4 * count_lora(shape, lora),
        activations=8 * update,
    )


def estimate_gguf(shape: ModelShape, gguf_type: str) -> int:
    """Estimate the bytes of one GGUF file; the image tower is not exported.

    The ``_M`` mixes hold the output table and half of the value and down projections in Q6_K.
    """
    text = count_parameters(shape._replace(vision=None))
    base = GGUF_BYTES[gguf_type]
    if not gguf_type.endswith("_M"):
        return int(text * base)
    e = shape.hidden
    value = e * shape.kv_heads * shape.head_dim
    finer = shape.vocab * e + shape.layers * (value + e * shape.intermediate) // 2
    return int((text - finer) * base + finer * GGUF_BYTES["Q6_K"])


def estimate_disk(shape: ModelShape, lora: LoraConfig, width: int, formats: Iterable[str]) -> dict[str, int]:
    """Estimate what a run leaves in its workspace, in bytes by kind.

    Counts two resumable checkpoints (adapter and optimizer state), the 16-bit file that every GGUF type
    is made from, and a second copy of the largest GGUF file in the bundle.
    """
    files = [estimate_gguf(shape, each) for each in formats]
    return {
        "checkpoints": 2 * 12 * count_lora(shape, lora),
        "merged model": count_parameters(shape) * width,
        "16-bit GGUF": estimate_gguf(shape, "f16"),
        "GGUF files": sum(files),
        "bundle": max(files, default=0),
    }


class VramRow(NamedTuple):
    """Settings that fit a card, as the product owner's table gives them."""

    vram_gb: int
    r: Literal[8, 16, 32]
    batch: tuple[int, int]
    """Smallest and largest micro-batch."""
    grad_accum: int
    window: int


VRAM_TABLE = (
    VramRow(8, 8, (1, 2), 8, 1024),
    VramRow(16, 16, (2, 4), 4, 2048),
    VramRow(24, 32, (4, 8), 2, 4096),
)


def recommended_settings(vram_gb: float) -> dict[str, int]:
    """Suggest settings for a card of so much memory, as dotted config keys, with the lower micro-batch."""
    row = next((row for row in reversed(VRAM_TABLE) if vram_gb >= row.vram_gb), VRAM_TABLE[0])
    return {
        "lora.r": row.r,
        "training.per_device_train_batch_size": row.batch[0],
        "training.gradient_accumulation_steps": row.grad_accum,
        "model.max_seq_length": row.window,
    }
