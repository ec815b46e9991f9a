"""Kinds of work, and their floors."""

import gzip
import json
from pathlib import Path

import pytest

from core.kernels.products import NAME
from core.models.resources.shapes import PUBLISHED
from core.training.benchmark.classes import (
    Namer,
    Product,
    class_of,
    classified,
    is_thin,
    pairs_run,
    product_of,
    without_crumbs,
)
from core.training.benchmark.floors import (
    Step,
    adapter_numbers,
    attention_flops,
    head_pair,
    linear_pairs,
    product_flops,
    stream_bytes,
    visible_pairs,
)
from core.training.benchmark.reports import OpClass
from core.training.benchmark.trace import Trace, Work, covered, parse, read_trace

LLAMA = PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"]
STEP = Step(LLAMA, (2048,) * 8, 16_384, 16, True)


def kernel(
    name: str, operation: str = "", *shapes: tuple[int, ...], us: float = 1000.0, size: int = 0
) -> Work:
    return Work(name, operation, shapes, 0.0, us, size)


# Floors, against figures computed elsewhere for this very shape and load


def test_products_of_llama_8b_take_229_tflop_each_way_and_the_head_34_in_all():
    linears = sum(product_flops(STEP, pair) for pair in linear_pairs(LLAMA, is_joined=True))
    assert linears == pytest.approx(228.7e12, rel=1e-3)
    separate = sum(product_flops(STEP, pair) for pair in linear_pairs(LLAMA, is_joined=False))
    assert separate == linears
    assert 2 * product_flops(STEP, head_pair(LLAMA)) == pytest.approx(34.4e12, rel=2e-3)


def test_attention_of_llama_8b_takes_nearly_9_tflop_forward():
    assert attention_flops(STEP) == pytest.approx(8.8e12, rel=3e-3)


def test_the_adapter_of_llama_8b_has_42_million_numbers():
    assert adapter_numbers(STEP) == 41_943_040


def test_expanding_llama_8b_moves_549_mb_a_layer_each_time():
    moved = stream_bytes(STEP)["expansion of 4-bit weights"]
    assert moved / 2 / 32 == pytest.approx(549e6, rel=2e-3)
    assert "expansion of 4-bit weights" not in stream_bytes(STEP._replace(is_packed_weight=False))


@pytest.mark.parametrize("window", [None, 1, 3, 7, 100])
def test_visible_pairs_are_those_that_counting_finds(window: int | None):
    lengths = (1, 5, 8)
    counted = sum(
        1 for n in lengths for q in range(n) for k in range(q + 1) if window is None or q - k < window
    )
    assert visible_pairs(lengths, window) == counted


def test_sliding_layers_see_less():
    gemma = PUBLISHED["google/gemma-3-1b-it"]
    whole = Step(gemma, (4096,), 4096, 16, False)
    slid = whole._replace(window=512, n_sliding=22)
    assert attention_flops(slid) < 0.4 * attention_flops(whole)


# Kinds


@pytest.mark.parametrize(
    ("shapes", "name"),
    [
        (((16384, 4096), (4096, 6144)), "product qkv forward"),
        (((16384, 4160), (4160, 6144)), "product qkv forward"),
        (((16384, 6208), (6208, 4096)), "product qkv backward"),
        (((16384, 4096), (4096, 28672)), "product gate_up forward"),
        (((16384, 28736), (28736, 4096)), "product gate_up backward"),
        (((16384, 14336), (14336, 4096)), "product down forward"),
        (((16384, 4096), (4096, 14336)), "product down backward"),
        (((16384, 4096), (4096, 4096)), "product o forward / o backward"),
        (((2048, 4096), (4096, 128256)), "product head forward"),
        (((2048, 128256), (128256, 4096)), "product head backward"),
        (((16384, 4096), (4096, 48)), "thin products"),
        (((64, 16384), (16384, 4096)), "thin products"),
        (((16384, 777), (777, 1234)), "products, other"),
    ],
)
def test_products_are_named_by_their_sizes(shapes: tuple, name: str):
    namer = Namer((*linear_pairs(LLAMA, is_joined=True), head_pair(LLAMA)))
    assert class_of(kernel("nvjet_hsh", "aten::mm", *shapes), namer, 16) == name
    added = kernel("nvjet_hsh", "aten::addmm", (1,), *shapes)
    assert class_of(added, namer, 16) == name
    assert class_of(kernel("nvjet_hsh", NAME, *shapes), namer, 16) == name


def test_layers_that_run_one_by_one_are_named_one_by_one():
    work = [kernel("gemm", "aten::mm", (16384, 4096), (4096, n)) for n in (1024, 14336)]
    pairs = pairs_run(work, STEP)
    assert [class_of(each, Namer(pairs), 16) for each in work] == [
        "product k, v forward",
        "product gate, up forward / down backward",
    ]
    joined = kernel("gemm", "aten::mm", (16384, 4096), (4096, 28672))
    assert "gate_up" in [pair.name for pair in pairs_run([*work, joined], STEP)]


@pytest.mark.parametrize(
    ("work", "name"),
    [
        (kernel("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma"), "attention forward"),
        (kernel("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma"), "attention backward"),
        (kernel("void cudnn::fusion::compute_dot_do_o_specialized<true>"), "attention backward"),
        (kernel("void pytorch_flash::flash_fwd_kernel<...>"), "attention forward"),
        (kernel("void flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel"), "attention backward"),
        (kernel("_rms_norm_forward", "DecoderLayerBackward"), "norm forward"),
        (kernel("_rms_norm_backward", "DecoderLayerBackward"), "norm backward"),
        (kernel("_rope_backward"), "rotation backward"),
        (kernel("_glu_forward", "DecoderLayer"), "gate forward"),
        (kernel("_spread", "DecoderLayer"), "adapters written beside weights"),
        (kernel("_plus_low_rank", "DecoderLayerBackward"), "thin products"),
        (kernel("_unpack_words", "DecoderLayer"), "expansion of 4-bit weights"),
        (kernel("void kDequantizeBlockwise<__nv_bfloat16, 512, 64, 8, 2>"), "expansion of 4-bit weights"),
        (kernel("void kOptimizerStatic8bit2StateBlockwise<float, 0, 256, 1>"), "optimizer"),
        (kernel("Memcpy HtoD (Pinned -> Device)"), "copies from main memory"),
        (kernel("Memcpy DtoH (Device -> Pinned)"), "copies to main memory"),
        (kernel("Memcpy DtoD (Device -> Device)"), "copies on the GPU"),
        (
            kernel("void at::native::vectorized_elementwise_kernel<4, x>", "aten::add"),
            "elementwise aten::add",
        ),
        (kernel("triton_poi_fused_mul_1", "CompiledFunction"), "elementwise triton_poi_fused_mul_1"),
    ],
    ids=lambda value: value.name[:30] if isinstance(value, Work) else None,
)
def test_kernels_are_sorted_by_their_names(work: Work, name: str):
    assert class_of(work, Namer(()), 16) == name


def test_a_batched_product_counts_every_matrix():
    assert product_of(kernel("gemm", "aten::bmm", (8, 100, 200), (8, 200, 300))) == Product(800, 200, 300)
    assert product_of(kernel("gemm", "aten::mul", (8, 100), (8, 100))) is None
    assert is_thin(Product(16384, 4096, 128), 32) and not is_thin(Product(16384, 4096, 128), 16)


def test_kinds_are_set_beside_their_floors():
    gemm = kernel("nvjet", "aten::mm", (16384, 4096), (4096, 28672), us=6000)
    copy = kernel("Memcpy HtoD (Pinned -> Device)", us=2000, size=55_000_000)
    found = {
        each.name: each for each in classified(Trace((gemm,) * 4 + (copy,), 40_000, 8000), STEP, 700e12, 2)
    }
    product = found["product gate_up forward"]
    assert (product.ms, product.launches) == (12.0, 2)
    # 32 layers are needed, whatever the trace shows.
    assert product.floor_ms == pytest.approx(32 * 2 * 16384 * 4096 * 28672 / 700e12 * 1e3)
    assert product.rate == "641 TFLOP/s"
    assert found["copies from main memory"].floor_ms == pytest.approx(0.5)
    assert found["copies from main memory"].rate == "28 GB/s"
    assert found["gaps"].ms == 4.0


@pytest.mark.parametrize("call", [1, None])
def test_a_fill_beside_a_product_adds_its_time_alone(call: int | None):
    sizes = ((16384, 4096), (4096, 28672))
    gemm = kernel("nvjet", "aten::mm", *sizes, us=6000)._replace(call=call)
    fill = kernel("Memset (Device)", "aten::mm", *sizes, us=2, size=4096)._replace(call=call)
    (found, _) = classified(Trace((fill, gemm), 6002, 0), STEP, 700e12, 1)
    assert (found.launches, found.rate) == (1, "641 TFLOP/s") and found.ms == pytest.approx(6.002)


def test_a_product_in_two_kernels_is_one_product_and_two_launches():
    sizes = ((16384, 4096), (4096, 28672))
    first, second = (
        kernel(n, "aten::mm", *sizes, us=3000)._replace(call=1) for n in ("gemm", "splitKreduce")
    )
    (found, _) = classified(Trace((first, second), 6000, 0), STEP, 700e12, 1)
    assert (found.launches, found.rate) == (2, "641 TFLOP/s")


def test_a_fill_beside_attention_is_no_rate_of_copying():
    flash = kernel("flash_bwd_kernel", "aten::_flash_attention_backward", us=900)
    fill = kernel("Memset (Device)", "aten::_flash_attention_backward", us=1, size=64)
    (found, _) = classified(Trace((flash, fill), 901, 0), STEP, 700e12, 1)
    assert (found.name, found.launches, found.rate) == ("attention backward", 1, "")


def test_crumbs_are_added_up_and_nothing_is_lost():
    kinds = [OpClass(name=f"elementwise {i}", ms=0.01, launches=2) for i in range(5)]
    kinds += [OpClass(name="loss", ms=0.01, launches=1), OpClass(name="product o", ms=100, launches=1)]
    found = without_crumbs(kinds)
    assert [each.name for each in found] == ["product o", "elementwise, 5 more", "loss"]
    assert sum(each.ms for each in found) == pytest.approx(sum(each.ms for each in kinds))


# Traces


def event(cat: str, name: str, ts: float, dur: float, **args: object) -> dict:
    return {"ph": "X", "cat": cat, "name": name, "ts": ts, "dur": dur, "tid": 1, "args": args}


EVENTS = [
    {"ph": "M", "name": "process_name"},
    event("cpu_op", "aten::mm", 0, 5, **{"External id": 7, "Input Dims": [[2, 3], [3, 4], []]}),
    event("cuda_runtime", "cudaLaunchKernel", 1, 1, correlation=3, **{"External id": 7}),
    event("kernel", "gemm", 10, 20, correlation=3, stream=7, **{"External id": 7}),
    event("gpu_memcpy", "Memcpy HtoD (Pinned -> Device)", 20, 20, bytes=64, stream=9),
    event("kernel", "lonely", 60, 10, stream=7, **{"External id": 99}),
]


def test_kernels_know_what_launched_them_and_idle_time_is_what_no_stream_fills():
    trace = parse(EVENTS)
    gemm, copy, lonely = trace.work
    assert (gemm.operation, gemm.shapes) == ("aten::mm", ((2, 3), (3, 4), ()))
    assert (gemm.call, copy.call, lonely.call) == (7, None, None)
    assert copy.bytes == 64 and lonely.operation == ""
    assert trace.span == 60 and trace.idle == 20


def test_work_inside_other_work_fills_no_more_time():
    assert covered([(0, 10), (1, 2), (5, 8), (9, 12), (20, 21)]) == 13


def test_without_a_gpu_an_operation_counts_less_what_it_calls():
    events = [event("cpu_op", "outer", 0, 10), event("cpu_op", "inner", 2, 3), event("cpu_op", "deep", 3, 1),
              event("cpu_op", "later", 12, 2)]  # fmt: skip
    assert {w.name: w.microseconds for w in parse(events).work} == {
        "outer": 7,
        "inner": 2,
        "deep": 1,
        "later": 2,
    }


def test_an_empty_trace_has_no_time():
    assert parse([]) == Trace((), 0.0, 0.0)


def test_compressed_traces_are_read_too(tmp_path: Path):
    plain, packed = tmp_path / "t.json", tmp_path / "t.json.gz"
    plain.write_text(json.dumps({"traceEvents": EVENTS}))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert read_trace(plain) == read_trace(packed) == parse(EVENTS)
