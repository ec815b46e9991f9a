"""How many parameters a decoder and its adapter have."""

from core.models.config import LoraConfig
from core.models.resources.shapes import FAMILIES, ModelShape, VisionShape
from core.models.target_names import match_targets


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


def adapted(shape: ModelShape, lora: LoraConfig) -> dict[str, tuple[int, int]]:
    """Name the linear layers of one block that get an adapter."""
    layers = linears(shape)
    return {name: layers[name] for name in match_targets(lora, list(layers), layers).chosen}


def count_block_weights(shape: ModelShape) -> int:
    """Count the weights of all blocks' linear layers: the ones that 4-bit storage shrinks."""
    return shape.layers * sum(n_in * n_out for n_in, n_out in linears(shape).values())


def count_packed_weights(shape: ModelShape) -> int:
    """Count the weights that bitsandbytes shrinks: every linear layer's but the output head's."""
    return count_block_weights(shape) + (_count_vision_blocks(shape.vision) if shape.vision else 0)


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


def adapter_tensors(shape: ModelShape, lora: LoraConfig) -> list[int]:
    """List the sizes of one block's trained tensors: A [r, in], B [out, r], and with DoRA a length per output."""
    sizes: list[int] = []
    for n_in, n_out in adapted(shape, lora).values():
        sizes += [lora.r * n_in, lora.r * n_out] + ([n_out] if lora.use_dora else [])
    return sizes


def count_lora(shape: ModelShape, lora: LoraConfig) -> int:
    """Count the adapter's parameters: rank x (inputs + outputs) of every adapted layer; lengths with DoRA."""
    return shape.layers * sum(adapter_tensors(shape, lora))
