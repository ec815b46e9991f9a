"""What the fused engine's layers take while they train; see core.models.fused for what they do.

A step peaks in the backward pass of a layer, or at a tile of logits; what the layers keep is there at both.
"""

import math

from core.models.config import LoraConfig
from core.models.fused.costs import FAMILIES as FUSED
from core.models.fused.costs import head_bytes
from core.models.fused.policy import FULL, LayerShape, Plan, floor_bytes, plan_layers
from core.models.resources.counting import adapted
from core.models.resources.shapes import FAMILIES, ModelShape

SPARE = 64
"""Adapters lie in extra rows and columns of a matrix, so many at a time."""
GROUPS = (("q_proj", "k_proj", "v_proj"), ("o_proj",), ("gate_proj", "up_proj"), ("down_proj",))
"""Projections that share an input are one matrix."""
NO_BOUND = 1 << 62


def fused_obstacle(shape: ModelShape, lora: LoraConfig, *, is_8bit: bool) -> str | None:
    """Say why all layers of a model would run by their own code; None if nothing is known to keep them from it.

    Args:
        shape: The base.
        lora: The adapter.
        is_8bit: The base is held in 8 bits.
    """
    if shape.vision or shape.family not in FUSED:
        kind = "gemma3 with images" if shape.vision else shape.family
        return f"models of type {kind} have no fused layers"
    if lora.use_dora:
        return "DoRA is not fused (lora.use_dora)"
    if lora.lora_dropout:
        return "dropout on the adapter's input is not fused (lora.lora_dropout)"
    if lora.bias != "none" and shape.qkv_bias:
        return "trained biases are not fused (lora.bias)"
    return "8-bit layers are not fused (model.load_in_8bit)" if is_8bit else None


def layer_shapes(shape: ModelShape, width: int) -> tuple[LayerShape, ...]:
    """Give the planner's view of a model; windows, which config.json states in many ways, are left out."""
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    is_sandwich = FAMILIES[shape.family].n_norms == 4
    layer = LayerShape(
        shape.hidden, q, k, shape.heads, shape.head_dim, shape.intermediate, is_sandwich, width
    )
    return (layer,) * shape.layers


def least_plan(layers: tuple[LayerShape, ...], tokens: int, *, keeps_all: bool) -> Plan:
    """Plan as if the GPU had no room, and main memory all that is asked for; or keep everything.

    Args:
        layers: The planner's view of the model.
        tokens: Of a micro-batch.
        keeps_all: Nothing is computed again.
    """
    if keeps_all:
        kept = tokens * sum(sum(layer.item_bytes) for layer in layers)
        return Plan((FULL,) * len(layers), kept, 0, 0.0, 0.0)
    return plan_layers(layers, tokens, tokens, 0, NO_BOUND)


def work_bytes(
    shape: ModelShape, lora: LoraConfig, tokens: int, width: int, *, is_packed: bool, fetches: bool
) -> tuple[int, int]:
    """Count what a step has in hand beside weights and what waits: in a layer, and at the head.

    Args:
        shape: The base.
        lora: The adapter.
        tokens: Of a micro-batch.
        width: Bytes of a number.
        is_packed: Weights are held in 4 bits, and expanded into a matrix for each group.
        fetches: Something waits in main memory.

    Returns:
        Bytes in a layer's backward pass, bytes at the head.
    """
    scratch = sum(extended(shape, lora, width)) if is_packed else 0
    layer = layer_shapes(shape, width)[0]
    at_head = head_bytes(layer, tokens, shape.vocab)
    return scratch + floor_bytes(layer, tokens, fetches=fetches), scratch + at_head


def home_bytes(shape: ModelShape, lora: LoraConfig, width: int) -> int:
    """Count the extra rows and columns of weights that are not packed, which live in extended matrices."""
    weights = width * layer_shapes(shape, width)[0].weights
    return shape.layers * (sum(extended(shape, lora, width)) - weights)


def extended(shape: ModelShape, lora: LoraConfig, width: int) -> list[int]:
    """Count the bytes of each group's matrix, with room for its adapters and a bias."""
    e, f = shape.hidden, shape.intermediate
    q, k = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    chosen = adapted(shape, lora)
    sizes = []
    for names, rows, columns in zip(GROUPS, (q + 2 * k, e, 2 * f, e), (e, q, e, f), strict=True):
        used = lora.r * sum(name in chosen for name in names) + (shape.qkv_bias and "q_proj" in names)
        spare = SPARE * math.ceil(used / SPARE)
        sizes.append(width * (rows + spare) * (columns + spare))
    return sizes
