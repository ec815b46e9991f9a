"""Reads and writes an ONNX graph with its weights in a file beside it."""

from pathlib import Path
from typing import Any

from core.deployment.onnx.names import MODEL_FILE, WEIGHTS_FILE

# Of onnx_ir.
Model = Any
Value = Any
Tensor = Any
SMALLEST = 256
"""Bytes; smaller tensors stay in the graph's own file."""


def save(program: Model, folder: Path) -> None:
    """Write a graph, its weights outside, so that no file meets protobuf's limit of 2 GB.

    Tensors over the same memory are written once: the embedding and the head of a model that ties them differ in
    shape alone. The graph is bound to the file afterwards.

    Args:
        program: The graph.
        folder: A folder that exists.
    """
    import onnx_ir

    values = [value for value in program.graph.initializers.values() if value.const_value.nbytes > SMALLEST]
    places = {id(value): _place(value.const_value) for value in values}
    firsts = {places[id(value)]: value for value in reversed(values)}
    owners = [value for value in values if firsts[places[id(value)]] is value]
    tensors = [value.const_value for value in owners]
    written = onnx_ir.external_data.convert_tensors_to_external(tensors, folder, WEIGHTS_FILE)
    stored = {places[id(value)]: tensor for value, tensor in zip(owners, written, strict=True)}
    for value in values:
        value.const_value = _renamed(stored[places[id(value)]], value, folder)
    onnx_ir.save(program, folder / MODEL_FILE)


def load(folder: Path) -> Model:
    """Open a graph that ``save`` wrote; weights are read from their file when they are asked for."""
    import onnx_ir

    return onnx_ir.load(folder / MODEL_FILE)


def _place(tensor: Tensor) -> tuple[int, int]:
    """Say where in memory a tensor's bytes lie, and how many they are."""
    array = tensor.numpy()
    return int(array.ctypes.data), int(array.nbytes)


def _renamed(stored: Tensor, value: Value, folder: Path) -> Tensor:
    import onnx_ir

    return onnx_ir.ExternalTensor(
        WEIGHTS_FILE,
        stored.offset,
        stored.length,
        stored.dtype,
        shape=value.const_value.shape,
        name=str(value.name),
        base_dir=folder,
    )
