"""The memory and disk that the phases around training take: answering, merging, the exported files."""

from collections.abc import Iterable

from core.models.config import LoraConfig
from core.models.resources.counting import count_lora, count_parameters, linears
from core.models.resources.shapes import ModelShape
from core.models.resources.training import Memory, stored_weights

# Bytes per weight of the GGUF block formats: block size in bytes over weights in a block.
GGUF_BYTES = {
    "f16": 2.0,
    "bf16": 2.0,
    "Q8_0": 34 / 32,
    "Q6_K": 210 / 256,
    "Q5_K_M": 176 / 256,
    "Q4_K_M": 144 / 256,
    "Q4_0": 18 / 32,
}

# Linear layers of an ONNX file: a float32 scale and a zero point of the same bits per block of 32 weights.
ONNX_BYTES = {"fp32": 4.0, "fp16": 2.0, "int8": 1 + 5 / 32, "int4": (32 / 2 + 4 + 0.5) / 32}
ONNX_TRACE_BYTES = 8
"""Main memory per parameter while a model is traced: its weights in float32, twice."""
PYTORCH_ROUND_BYTES = 5
"""Main memory per parameter while a model becomes 8-bit integers: float32, and what has been packed."""
SCORED_LOGITS = 1 << 28
"""Logits that core.evaluation.likelihood holds at once when texts are scored."""


def estimate_inference(
    shape: ModelShape, width: int, *, batch: int, window: int, more: int = 0, scores: bool = False
) -> Memory:
    """Estimate generation in full precision at its peak: reading the prompts, or the last token, or scoring.

    Args:
        shape: The model.
        width: Bytes per number.
        batch: Questions at once.
        window: Tokens of the longest prompt.
        more: Tokens of the longest answer.
        scores: The likelihood of given texts is measured too.
    """
    per_token = 2 * shape.kv_heads * shape.head_dim * shape.layers * width
    last = batch * shape.vocab * (width + 4)
    reading = batch * window * width * (3 * shape.intermediate + 3 * shape.hidden)
    if scores:
        reading = max(reading, (width + 8) * min(SCORED_LOGITS, batch * window * shape.vocab))
    weights = stored_weights(shape, width)
    first = Memory(weights, cache=batch * window * per_token, activations=reading, logits=last)
    end = Memory(weights, cache=batch * (window + more) * per_token, logits=last)
    return max(first, end, key=lambda each: each.total)


def estimate_merge(shape: ModelShape, lora: LoraConfig, width: int, *, probe: int = 0) -> Memory:
    """Estimate folding the adapter in: the base in full precision, and one layer's update at a time.

    The update is made in float32, cast, added and checked, 12 bytes a weight together (measured). Comparing the
    logits of ``probe`` tokens before and after takes four float32 copies of them.
    """
    update = max(n_in * n_out for n_in, n_out in linears(shape).values())
    compared = 16 * probe * shape.vocab
    return Memory(
        weights=stored_weights(shape, width),
        adapter=4 * count_lora(shape, lora),
        activations=12 * update if 12 * update > compared else 0,
        logits=compared if compared >= 12 * update else 0,
    )


def estimate_gguf(shape: ModelShape, gguf_type: str) -> int:
    """Estimate the bytes of one GGUF file; the image tower is not exported.

    The ``_M`` mixes hold the output table and half of the value and down projections in Q6_K, Q4_0 the table alone.
    """
    text = count_parameters(shape._replace(vision=None))
    base = GGUF_BYTES[gguf_type]
    if gguf_type != "Q4_0" and not gguf_type.endswith("_M"):
        return int(text * base)
    e = shape.hidden
    value = e * shape.kv_heads * shape.head_dim
    mixed = shape.layers * (value + e * shape.intermediate) // 2 if gguf_type.endswith("_M") else 0
    finer = shape.vocab * e + mixed
    return int((text - finer) * base + finer * GGUF_BYTES["Q6_K"])


def estimate_onnx(shape: ModelShape, onnx_type: str) -> int:
    """Estimate the bytes of one ONNX model; embedding and head keep 8 bits where linear layers have 4."""
    text = count_parameters(shape._replace(vision=None))
    if onnx_type != "int4":
        return int(text * ONNX_BYTES[onnx_type])
    tables = shape.vocab * shape.hidden * (1 if shape.is_tied else 2)
    return int((text - tables) * ONNX_BYTES["int4"] + tables * ONNX_BYTES["int8"])


def estimate_pytorch(shape: ModelShape) -> int:
    """Estimate the bytes of an 8-bit PyTorch model: a byte per weight, and a float32 step per row."""
    text = count_parameters(shape._replace(vision=None))
    return int(text * (1 + 4 / shape.hidden))


def estimate_disk(
    shape: ModelShape,
    lora: LoraConfig,
    width: int,
    formats: Iterable[str],
    onnx: Iterable[str] = (),
    pytorch: Iterable[str] = (),
) -> dict[str, int]:
    """Estimate what a run leaves in its workspace, in bytes by kind, at the moment when most of it is there.

    Counts two resumable checkpoints (adapter and optimizer state) and the best adapter beside the final one,
    the 16-bit file that every GGUF type is made from, the traced graph of the ONNX models in float32, and a
    second copy of the largest GGUF file in the bundle.
    """
    files, models = (
        [estimate_gguf(shape, each) for each in formats],
        [estimate_onnx(shape, each) for each in onnx],
    )
    adapter = 4 * count_lora(shape, lora)
    return {
        "checkpoints": 2 * 3 * adapter + 2 * adapter,
        "merged model": count_parameters(shape) * width,
        "16-bit GGUF": estimate_gguf(shape, "f16"),
        "GGUF files": sum(files),
        "ONNX files": sum(models) + (estimate_onnx(shape, "fp32") if models else 0),
        "PyTorch files": sum(estimate_pytorch(shape) for _ in pytorch),
        "bundle": max(files, default=0),
    }
