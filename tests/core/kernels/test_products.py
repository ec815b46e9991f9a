"""Products are PyTorch's to rounding, whoever computes them; algorithms are chosen by how full their waves are."""

import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from core.kernels import products
from core.kernels.products import NAME, cublaslt, is_large, multiply, shown
from core.kernels.products.tiles import TILES, Tile, best, fullness
from tests.core.kernels.conftest import DEVICE, assert_no_worse, inside, margin_untouched, normal, poisoned

on_gpu = pytest.mark.skipif(DEVICE.type != "cuda", reason="cuBLASLt needs a GPU")


@pytest.mark.parametrize("is_turned", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_product_is_what_pytorch_computes(dtype: torch.dtype, is_turned: bool) -> None:
    x, w = normal(5, 7, dtype=dtype), normal(7, 3, dtype=dtype, seed=1)
    w = w.t().contiguous().t() if is_turned else w
    torch.testing.assert_close(multiply(x, w), torch.mm(x, w))


def test_it_is_written_where_it_is_wanted_and_nowhere_else() -> None:
    x, w = normal(5, 7), normal(7, 3, seed=1)
    out = poisoned((5, 3), torch.float32)
    assert multiply(x, w, out=out) is out
    torch.testing.assert_close(out, torch.mm(x, w))
    assert margin_untouched(out)


def test_it_is_added_to_what_is_there() -> None:
    x, w, there = normal(5, 7), normal(7, 3, seed=1), normal(5, 3, seed=2)
    out = inside(there)
    multiply(x, w, out=out, onto=True)
    torch.testing.assert_close(out, there + x @ w)
    assert margin_untouched(out)


def test_a_profiler_sees_a_product_with_its_sizes_and_without_one_nothing_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "runs_fused", lambda device: True)
    monkeypatch.setattr(cublaslt, "try_multiply", lambda x, w, out, *, onto: torch.mm(x, w))
    x, w = normal(512, 520).bfloat16(), normal(520, 528).bfloat16()
    assert isinstance(shown(x, w), nullcontext)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as seen:
        multiply(x, w)
    seen.export_chrome_trace(str(tmp_path / "trace.json"))
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    mine = [event for event in events if event.get("name") == NAME]
    assert [(each["cat"], each["args"]["Input Dims"]) for each in mine] == [
        ("cpu_op", [[512, 520], [520, 528]])
    ]


@pytest.mark.parametrize(
    ("rows", "inner", "columns", "dtype", "expected"),
    [
        (512, 512, 512, torch.bfloat16, True),
        (511, 512, 512, torch.bfloat16, False),
        (512, 64, 512, torch.float16, False),
        (512, 512, 64, torch.bfloat16, False),
        (512, 512, 512, torch.float32, False),
    ],
)
def test_only_large_products_of_16_bits_are_chosen_for(
    rows: int, inner: int, columns: int, dtype: torch.dtype, expected: bool
) -> None:
    x, w = torch.empty(rows, inner, dtype=dtype), torch.empty(inner, columns, dtype=dtype)
    assert is_large(x, w) is expected


@pytest.mark.parametrize(("n", "t"), [(4096, 16384), (100, 100), (4160, 4096), (28672, 16384)])
@pytest.mark.parametrize("number", [20, 24, 29, 201])
def test_fullness_is_the_share_of_wanted_work_in_all_waves(number: int, n: int, t: int) -> None:
    tile, processors = TILES[number], 132
    corners = [(a, b) for a in range(0, n, tile.rows) for b in range(0, t, tile.columns)]
    waves = [corners[start : start + processors] for start in range(0, len(corners), processors)]
    done = len(waves) * processors * tile.rows * tile.columns
    wanted = sum(min(tile.rows, n - a) * min(tile.columns, t - b) for a, b in corners)
    assert fullness(tile, n, t, processors) == pytest.approx(wanted / done)


def test_a_wave_that_just_fits_is_full() -> None:
    assert fullness(Tile(10, 10, 1.0), 40, 50, 20) == 1.0
    assert fullness(Tile(10, 10, 1.0), 40, 60, 20) == pytest.approx(24 / 40)


def test_the_tile_with_the_fullest_waves_is_chosen_among_equals() -> None:
    # 4096 x 16384: 128 x 160 fills 24.8 of 25 waves, 256 x 128 fills 15.5 of 16 (H200, 132 processors).
    assert best([24, 23, 29], 4096, 16384, 132) == 2
    assert best([29, 23, 24], 19456, 16384, 132) == 2


def test_a_slow_tile_is_not_chosen_for_a_little_more() -> None:
    assert best([31, 23], 28672, 16384, 132) == 1


def test_the_librarys_first_stands_where_no_tile_is_known() -> None:
    assert best([7777, 8888], 4096, 16384, 132) == 0
    assert best([7777, 24], 4096, 16384, 132) == 1


@on_gpu
@pytest.mark.parametrize("onto", [False, True])
@pytest.mark.parametrize("is_turned", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_chosen_algorithm_errs_no_more_than_pytorch(
    dtype: torch.dtype, is_turned: bool, onto: bool
) -> None:
    from core.kernels.products.cublaslt import is_hopper, try_multiply

    x, w = normal(1000, 1088, dtype=dtype), normal(1088, 1536, dtype=dtype, seed=1)
    w = w.t().contiguous().t() if is_turned else w
    there = normal(1000, 1536, dtype=dtype, seed=2)
    out = inside(there, 1600)
    found = try_multiply(x, w, out, onto=onto)
    assert (found is out) is is_hopper(0)
    if found is None:
        return
    exact, plain = x.double() @ w.double(), x @ w
    if onto:
        exact, plain = exact + there.double(), torch.addmm(there, x, w)
    assert_no_worse(out.contiguous(), plain, exact)
    assert margin_untouched(out)


@on_gpu
def test_what_the_library_cannot_read_is_left_to_pytorch() -> None:
    from core.kernels.products.cublaslt import try_multiply

    wide = normal(600, 1088, dtype=torch.bfloat16)
    w = normal(1024, 1024, dtype=torch.bfloat16)
    assert try_multiply(wide[:, 1:1025], w, None, onto=False) is None
    torch.testing.assert_close(multiply(wide[:, 1:1025], w), wide[:, 1:1025] @ w)
