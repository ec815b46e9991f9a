"""Shrinks the weights of an ONNX graph: 16-bit floats, or blocks of 8-bit or 4-bit integers.

The rounding is ONNX Runtime's own kernel, one weight at a time, so that a large model never lies in memory twice.
What is ours is which weight gets how many bits, and that the output head and the embedding of a model that ties
them are one table: ONNX Runtime's quantizer leaves the embedding in float32, or writes the table twice.
"""

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.quantization.config import OnnxType

# Of onnx_ir, whose types allow None wherever a graph could be malformed; those that arrive here are not.
Model = Any
Graph = Any
Node = Any
Value = Any
Bits = Literal[4, 8]
BLOCK = 32
"""Consecutive weights of one output that share a scale and a zero point."""
INT8_ACTIVATIONS = 4
"""ONNX Runtime's accuracy_level at which inputs are rounded to 8 bits on the fly: integer arithmetic, many times faster."""
SMALLEST = 1024
"""Elements; smaller tensors (norms, biases, frequencies) stay as they are."""
LARGEST_HALF = 65504.0
RUNTIME = "com.microsoft"


class _Blocks(NamedTuple):
    """A weight in blocks, as initializers of the graph."""

    packed: NDArray[np.uint8]
    """[outputs, blocks, bytes]"""
    values: list[Value]
    """Packed weight, scales, zero points."""
    bits: Bits


def shrink(model: Model, kind: OnnxType) -> None:
    """Change the weights of a float32 graph in place.

    Args:
        model: As ``core.deployment.onnx.graph.trace`` makes it.
        kind: fp32 leaves it alone. fp16 stores weights in 16 bits and computes in float32. int8 and int4 hold linear
            layers in blocks of 8 or 4 bits; the output head and the embedding get 8 bits in both.
    """
    if kind == "fp16":
        _store_half(model)
    elif kind != "fp32":
        _quantize(model, 8 if kind == "int8" else 4)


def _quantize(model: Model, bits: Bits) -> None:
    graph = model.graph
    model.opset_imports[RUNTIME] = 1
    done: dict[str, _Blocks] = {}
    nodes = list(graph)
    for node in nodes:
        weight = _linear_weight(node)
        if weight is not None:
            _replace_linear(graph, node, weight, 8 if node.outputs[0].is_graph_output() else bits, done)
    for node in nodes:
        if _is_lookup(node) and node.inputs[0].shape[1] % BLOCK == 0:
            _replace_lookup(graph, node, done)
    _drop_unused(graph)


def _linear_weight(node: Node) -> NDArray[np.float32] | None:
    """Return the constant matrix [inputs, outputs] that a node multiplies with, if that is what it does."""
    if node.op_type not in ("MatMul", "FusedMatMul") or node.inputs[1] is None:
        return None
    constant = node.inputs[1].const_value
    if constant is None or len(constant.shape) != 2:
        return None
    turned = node.attributes.get_int("transB", 0)
    weight: NDArray[np.float32] = constant.numpy()
    return weight.T if turned else weight


def _is_lookup(node: Node) -> bool:
    table = node.inputs[0] if node.op_type == "Gather" else None
    return (
        table is not None
        and table.const_value is not None
        and len(table.shape) == 2
        and table.const_value.size > SMALLEST
        and node.attributes.get_int("axis", 0) == 0
    )


def _replace_linear(
    graph: Graph,
    node: Node,
    weight: NDArray[np.float32],
    bits: Bits,
    done: dict[str, _Blocks],
) -> None:
    """Put MatMulNBits in the place of a product with a constant."""
    name = node.inputs[1].name
    if name not in done:
        done[name] = _blocks(graph, name, weight, bits)
    sizes = {"K": weight.shape[0], "N": weight.shape[1], "bits": done[name].bits, "block_size": BLOCK}
    inputs = [node.inputs[0], *done[name].values]
    _swap(graph, node, "MatMulNBits", inputs, {**sizes, "accuracy_level": INT8_ACTIVATIONS})


def _replace_lookup(graph: Graph, node: Node, done: dict[str, _Blocks]) -> None:
    """Put GatherBlockQuantized in the place of an embedding, over the head's own bytes if they are one table."""
    table = node.inputs[0]
    if table.name not in done:
        # A column of the head is a row of the table: both lie in blocks along the width.
        done[table.name] = _blocks(graph, table.name, table.const_value.numpy().T, 8)
    blocks = done[table.name]
    rows = _constant(graph, f"{table.name}_rows", blocks.packed.reshape(len(blocks.packed), -1))
    inputs = [rows, node.inputs[1], *blocks.values[1:]]
    axes = {"gather_axis": 0, "quantize_axis": 1, "block_size": BLOCK, "bits": blocks.bits}
    _swap(graph, node, "GatherBlockQuantized", inputs, axes)


def _blocks(graph: Graph, name: str, weight: NDArray[np.float32], bits: Bits) -> _Blocks:
    packed, scales, zeros = round_blocks(weight, bits)
    arrays: dict[str, NDArray[Any]] = {"packed": packed, "scales": scales, "zeros": zeros}
    values = [_constant(graph, f"{name}_{part}", array) for part, array in arrays.items()]
    return _Blocks(packed, values, bits)


def round_blocks(
    weight: NDArray[np.float32], bits: Bits
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.uint8]]:
    """Round a matrix to the nearest of 2^bits evenly spaced levels per block of 32 inputs.

    Args:
        weight: [inputs, outputs].
        bits: 4 (two weights a byte, the lower half first) or 8.

    Returns:
        Packed weight [outputs, blocks, bytes], scales [outputs, blocks] and zero points, packed like the weight:
        weight = scale (level - zero point).
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        DefaultWeightOnlyQuantizer,
    )

    settings = DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, bits=bits)
    whole = np.ascontiguousarray(weight, dtype=np.float32)
    packed, scales, zeros = DefaultWeightOnlyQuantizer(settings).qbits_block_quant(whole)
    return packed, scales, zeros


def _store_half(model: Model) -> None:
    """Store large weights in 16 bits; a cast after them gives the float32 that everything computes in."""
    import onnx_ir

    graph = model.graph
    for value in list(graph.initializers.values()):
        if value.dtype != onnx_ir.DataType.FLOAT or value.const_value.size < SMALLEST:
            continue
        array = value.const_value.numpy()
        if np.abs(array).max() > LARGEST_HALF:
            continue
        half = _constant(graph, f"{value.name}_half", array.astype(np.float16))
        readers = [node for node, _ in value.uses()]
        if all(_is_lookup(node) for node in readers):
            for node in readers:
                _cast_rows(graph, node, half)
        else:
            cast = onnx_ir.node("Cast", [half], attributes={"to": onnx_ir.DataType.FLOAT.value})
            cast.outputs[0].dtype = onnx_ir.DataType.FLOAT
            graph.insert_before(next(iter(graph)), cast)
            value.replace_all_uses_with(cast.outputs[0])
    _drop_unused(graph)


def _cast_rows(graph: Graph, node: Node, half: Value) -> None:
    """Cast the rows that were looked up, not the whole table."""
    import onnx_ir

    rows = onnx_ir.node("Gather", [half, node.inputs[1]], attributes={"axis": 0})
    rows.outputs[0].dtype = onnx_ir.DataType.FLOAT16
    graph.insert_before(node, rows)
    _swap(graph, node, "Cast", [rows.outputs[0]], {"to": onnx_ir.DataType.FLOAT.value}, domain="")


def _constant(graph: Graph, name: str, array: NDArray[Any]) -> Value:
    import onnx_ir

    value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array))
    value.dtype, value.shape = onnx_ir.DataType.from_numpy(array.dtype), onnx_ir.Shape(array.shape)
    graph.register_initializer(value)
    return value


def _swap(
    graph: Graph,
    node: Node,
    operator: str,
    inputs: list[Value],
    attributes: dict[str, int],
    *,
    domain: str = RUNTIME,
) -> None:
    """Put another node in a node's place; its output keeps name, type and shape."""
    import onnx_ir

    made = onnx_ir.node(operator, inputs, attributes=attributes, domain=domain)
    graph.insert_before(node, made)
    old, new = node.outputs[0], made.outputs[0]
    name, new.dtype, new.shape = old.name, old.dtype, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    new.name = name


def _drop_unused(graph: Graph) -> None:
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
