from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from core.deployment.onnx.files import load, save
from core.quantization.onnx import BLOCK, round_blocks, shrink

ROWS, WIDTH, INNER = 48, 64, 96


def random(*shape: int, seed: int = 0, scale: float = 0.5) -> np.ndarray:
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def unpacked(packed: np.ndarray, bits: int) -> np.ndarray:
    """Undo the packing by hand: two levels a byte, the lower half first."""
    if bits == 8:
        return packed.astype(np.int64)
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1).astype(np.int64)


def restored(packed: np.ndarray, scales: np.ndarray, zeros: np.ndarray, bits: int, inputs: int) -> np.ndarray:
    outputs = len(packed)
    levels = unpacked(packed, bits).reshape(outputs, -1, BLOCK)
    middle = unpacked(zeros, bits).reshape(outputs, -1)[:, : levels.shape[1], None]
    return (scales.reshape(outputs, -1, 1) * (levels - middle)).reshape(outputs, -1)[:, :inputs].T


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("inputs", [64, 96, 70])
def test_no_weight_moves_by_more_than_half_a_level(bits, inputs):
    weight = random(inputs, 10)
    weight[:, 3] = 0
    weight[:, 4] = 0.25
    packed, scales, zeros = round_blocks(weight, bits)
    step = np.repeat(scales.reshape(10, -1), BLOCK, axis=1)[:, :inputs].T
    error = np.abs(restored(packed, scales, zeros, bits, inputs) - weight)
    # The zero point is rounded to a level as well, so at the ends of a block it may be one.
    assert (error <= step * 1.001 + 1e-7).all()
    assert error.mean() <= 0.3 * step.mean()
    assert (error[:, 3] == 0).all()
    assert packed.nbytes == 10 * -(-inputs // BLOCK) * BLOCK * bits // 8


class Tiny:
    """ids -> embedding -> linear -> linear -> head, by numpy and as a graph."""

    def __init__(self, *, tied: bool, width: int = WIDTH) -> None:
        self.table = random(ROWS, width, seed=1)
        self.inner, self.outer = (
            random(width, INNER, seed=2, scale=0.1),
            random(INNER, width, seed=3, scale=0.1),
        )
        self.head = self.table.T if tied else random(width, ROWS, seed=4)
        self.tied, self.width = tied, width

    def logits(self, ids: np.ndarray) -> np.ndarray:
        return self.table[ids] @ self.inner @ self.outer @ self.head

    def graph(self) -> Any:
        ids = ir.Value(name="ids", shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.INT64))
        held = {"table": self.table, "inner": self.inner, "outer": self.outer}
        held |= {} if self.tied else {"head": np.ascontiguousarray(self.head)}
        values = {name: ir.Value(name=name, const_value=ir.tensor(array)) for name, array in held.items()}
        for name, value in values.items():
            value.dtype, value.shape = ir.DataType.FLOAT, ir.Shape(held[name].shape)
        nodes = [ir.node("Gather", [values["table"], ids], attributes={"axis": 0})]
        for name in ("inner", "outer"):
            nodes.append(ir.node("MatMul", [nodes[-1].outputs[0], values[name]]))
        last = nodes[-1].outputs[0]
        nodes.append(
            ir.node("FusedMatMul", [last, values["table"]], attributes={"transB": 1}, domain="com.microsoft")
            if self.tied
            else ir.node("MatMul", [last, values["head"]])
        )
        for node in nodes:
            node.outputs[0].dtype = ir.DataType.FLOAT
        nodes[-1].outputs[0].name, nodes[-1].outputs[0].shape = "logits", ir.Shape(["n", ROWS])
        graph = ir.Graph([ids], [nodes[-1].outputs[0]], nodes=nodes, initializers=list(values.values()),
                         opset_imports={"": 20, "com.microsoft": 1}, name="tiny")  # fmt: skip
        return ir.Model(graph, ir_version=10)


def run(folder: Path, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"ids": ids})[0]


def written(tiny: Tiny, kind: Any, folder: Path) -> Any:
    program = tiny.graph()
    shrink(program, kind)
    save(program, folder)
    return load(folder)


def operators(program: Any) -> list[str]:
    return [node.op_type for node in program.graph]


IDS = np.arange(ROWS, dtype=np.int64)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("kind", "most"), [("fp32", 1e-6), ("fp16", 1e-3), ("int8", 0.02), ("int4", 0.2)])
def test_a_shrunk_graph_computes_about_the_same(kind, most, tied, tmp_path):
    tiny = Tiny(tied=tied)
    written(tiny, kind, tmp_path)
    wanted, found = tiny.logits(IDS), run(tmp_path, IDS)
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < most
    assert (np.abs(found - wanted).max() > 1e-5) == (kind != "fp32")


@pytest.mark.parametrize("tied", [True, False])
def test_linear_layers_have_the_bits_asked_for_and_head_and_embedding_eight(tied, tmp_path):
    program = written(Tiny(tied=tied), "int4", tmp_path)
    assert operators(program) == ["GatherBlockQuantized", "MatMulNBits", "MatMulNBits", "MatMulNBits"]
    bits = [node.attributes["bits"].value for node in program.graph]
    assert bits == [8, 4, 4, 8]
    assert {node.attributes["block_size"].value for node in program.graph} == {32}
    assert [node.attributes["accuracy_level"].value for node in list(program.graph)[1:]] == [4, 4, 4]
    eight = written(Tiny(tied=tied), "int8", tmp_path)
    assert [node.attributes["bits"].value for node in eight.graph] == [8, 8, 8, 8]


def test_a_tied_table_lies_in_the_file_once(tmp_path):
    (tmp_path / "tied").mkdir(), (tmp_path / "untied").mkdir()
    program = written(Tiny(tied=True), "int8", tmp_path / "tied")
    written(Tiny(tied=False), "int8", tmp_path / "untied")
    sizes = {name: (tmp_path / name / "model.onnx.data").stat().st_size for name in ("tied", "untied")}
    # A byte a weight, and five a block; the smallest tensors may lie in the other file.
    table = ROWS * WIDTH * (1 + 5 / BLOCK)
    linear = 2 * WIDTH * INNER * (1 + 5 / BLOCK)
    assert sizes["tied"] == pytest.approx(table + linear, rel=0.04)
    assert sizes["untied"] == pytest.approx(2 * table + linear, rel=0.04)
    places = {(v.const_value.offset, v.const_value.length) for n, v in program.graph.initializers.items()
              if n in ("table_packed", "table_rows")}  # fmt: skip
    assert len(places) == 1


def test_looked_up_rows_are_the_rounded_table(tmp_path):
    tiny = Tiny(tied=True)
    tiny.inner = np.eye(WIDTH, INNER, dtype=np.float32)
    tiny.outer = np.eye(INNER, WIDTH, dtype=np.float32)
    program = tiny.graph()
    shrink(program, "int8")
    rows = next(iter(program.graph)).outputs[0]
    rows.name, rows.shape = "rows", ir.Shape(["n", WIDTH])
    program.graph.outputs.append(rows)
    save(program, tmp_path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    found = session.run(["rows"], {"ids": IDS[::-1].copy()})[0]
    table = restored(*round_blocks(tiny.table.T, 8), 8, WIDTH).T
    assert np.abs(found - table[::-1]).max() < 1e-6


def test_half_precision_rounds_weights_and_nothing_else(tmp_path):
    tiny = Tiny(tied=False)
    written(tiny, "fp16", tmp_path)
    for name in ("table", "inner", "outer", "head"):
        setattr(tiny, name, getattr(tiny, name).astype(np.float16).astype(np.float32))
    assert np.abs(run(tmp_path, IDS) - tiny.logits(IDS)).max() < 1e-5
    weights = ROWS * WIDTH * 2 + WIDTH * INNER * 2
    assert (tmp_path / "model.onnx.data").stat().st_size == pytest.approx(2 * weights, rel=0.01)


def test_a_weight_beyond_half_precision_stays_in_float32(tmp_path):
    tiny = Tiny(tied=False)
    tiny.inner[0, 0] = 70_000
    written(tiny, "fp16", tmp_path)
    found, wanted = run(tmp_path, IDS), tiny.logits(IDS)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 1e-3


def test_an_embedding_that_blocks_do_not_divide_stays_as_it_is(tmp_path):
    tiny = Tiny(tied=True, width=40)
    program = written(tiny, "int8", tmp_path)
    assert operators(program)[0] == "Gather"
    wanted, found = tiny.logits(IDS), run(tmp_path, IDS)
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.02


def test_float32_is_left_alone(tmp_path):
    program = written(Tiny(tied=True), "fp32", tmp_path)
    assert operators(program) == ["Gather", "MatMul", "MatMul", "FusedMatMul"]
