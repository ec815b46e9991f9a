"""Figures put together, shown, and refused."""

import json
from pathlib import Path

import pytest

from core.training.benchmark.case import Case
from core.training.benchmark.reports import Measured, Memory, OpClass, Parity, Profile, Speed
from flows.bench.finetune import ending
from flows.bench.report import HEAD, cells, markdown, report_folder, title_of, write_report
from flows.bench.results import Comparison, Line, line_of
from flows.bench.table import WIDE, drawn

GIB = 1 << 30
GOOD = Parity(loss=2.0, reference_loss=2.0, worst_cosine=0.9995, worst_tensor="layers.0.q", tensors=28)
BAD = GOOD.model_copy(update={"worst_cosine": 0.9, "worst_tensor": "layers.1.k"})


def measured(
    system: str, *ms: float, parity: Parity | None = GOOD, loss: float = 7.0, peak: int = GIB, **more: object
) -> Measured:
    return Measured(
        system=system,
        parity=parity,
        speed=Speed(step_ms=ms, wall_ms=sum(ms) / len(ms), tokens=16_000, labelled=8000),
        memory=Memory(loaded=1, allocated=peak, reserved=2 * peak, pinned=peak // 2, first=peak),
        first_loss=loss,
        machine={"device": "NVIDIA H200", "torch": "2.11.0"},
        **more,
    )  # fmt: skip


def comparison(*lines: Line, **more: object) -> Comparison:
    return Comparison(model="llama-8b", case=Case(system="hf", model="/x", **more), lines=lines)


def test_rounds_share_one_median_and_keep_the_highest_peak_and_the_worst_parity():
    worse = GOOD.model_copy(update={"worst_cosine": 0.9991})
    line = line_of(
        "fused", [measured("fused", 100, 110, 120), measured("fused", 130, 140, peak=3 * GIB, parity=worse)]
    )
    assert (line.ms, line.rounds_ms) == (120, (110, 135))
    assert line.ms_p10 == 100 and line.ms_p90 == 140
    assert line.tokens_per_second == pytest.approx(16_000 / 0.12)
    assert line.labelled_per_second == pytest.approx(8000 / 0.12)
    assert line.measured and line.measured.memory and line.measured.memory.allocated == 3 * GIB
    assert line.measured.parity == worse


def test_the_worst_loss_and_the_worst_cosine_may_come_from_different_rounds():
    off, turned = (
        GOOD.model_copy(update=each)
        for each in ({"loss": 2.001}, {"worst_cosine": 0.9992, "worst_tensor": "x"})
    )
    for rounds in ((off, turned), (turned, off)):
        found = line_of("fused", [measured("fused", 100, parity=each) for each in rounds]).measured
        assert found and found.parity == turned.model_copy(update={"loss": 2.001})


@pytest.mark.parametrize(
    ("rounds", "word"),
    [
        ([measured("unsloth", 100, parity=BAD)], "refused: gradient cosine"),
        ([measured("unsloth", 100), measured("unsloth", 90, parity=BAD)], "refused: gradient cosine"),
        ([measured("unsloth", 100, parity=None)], "refused: not compared"),
        ([Measured(system="unsloth", error="OutOfMemoryError: no")], "failed: OutOfMemoryError"),
    ],
    ids=["one", "a later round", "no parity", "error"],
)
def test_a_system_that_fails_shows_its_figures_and_no_speed(rounds: list[Measured], word: str):
    line = line_of("unsloth", rounds)
    assert line.problem and line.problem.startswith(word)
    assert line.ms is line.tokens_per_second is None
    ours = line_of("fused", [measured("fused", 50)])
    found = comparison(ours, line)
    assert found.relative(line) is None
    row = dict(zip(HEAD, cells(found, line), strict=True))
    assert row["tok/s"] == row["labelled tok/s"] == row["wall"] == row["p10–p90"] == row["ours is"] == ""
    assert row["ms/step"] == word.split(":")[0]
    if rounds[0].memory:
        assert row["peak GiB"] == "1.00" and row["loss"] == "7.00000"
    assert line.problem in markdown([found])


def test_the_exit_code_is_about_ours_alone():
    good, bad = line_of("fused", [measured("fused", 80)]), line_of("hf", [measured("hf", 80, parity=BAD)])
    assert ending([comparison(good, bad)]) == 0
    assert ending([comparison(good, good), comparison(bad, good)]) == 1


def test_ours_stands_beside_every_peer():
    ours, peer = line_of("fused", [measured("fused", 80)]), line_of("hf", [measured("hf", 100)])
    found = comparison(ours, peer)
    assert found.relative(peer) == 1.25 and found.relative(ours) is None
    assert cells(found, peer)[-1] == "1.25×" and cells(found, ours)[-1] == ""


@pytest.mark.parametrize(
    ("losses", "is_shown"),
    [((7.0, 7.0069), True), ((7.0, 7.0071), False), ((7.0, 7.5, 7.001), True), ((7.0,), True)],
)
def test_ours_is_refused_where_its_loss_on_the_timed_rows_is_nobodys(
    losses: tuple[float, ...], is_shown: bool
):
    lines = [line_of(f"s{i}", [measured(f"s{i}", 80, loss=loss)]) for i, loss in enumerate(losses)]
    checked = comparison(*lines).checked()
    assert bool(checked.lines[0].ms) is is_shown
    assert (checked.lines[0].problem is None) is is_shown
    assert all(line.ms for line in checked.lines[1:])


def test_a_narrow_screen_shows_fewer_columns_and_a_wide_one_all():
    found = comparison(line_of("fused", [measured("fused", 80)]))
    assert len(drawn(found, WIDE).columns) == len(HEAD)
    assert "tok/s" in [c.header for c in drawn(found, 80).columns] and len(drawn(found, 80).columns) < len(
        HEAD
    )


def test_the_title_says_what_was_run():
    line = Line(system="fused", problem="skipped: x")
    assert title_of(comparison(line)) == "llama-8b nf4, 8 × 2048, r = 16, checkpointing on, budget auto"
    other = comparison(
        line, micro_batch=2, packed=True, labels="half", budget=4.0, checkpointing=False, storage="bf16"
    )
    assert title_of(other) == (
        "llama-8b bf16, 8 × 2048 by 2, r = 16, checkpointing off, budget 4 GiB, packed, half of the labels"
    )


def test_a_report_never_replaces_an_earlier_one(tmp_path: Path):
    found = [comparison(line_of("fused", [measured("fused", 80, notes=("own choice",))]))]
    first, second = write_report(tmp_path, found), write_report(tmp_path, found)
    assert len({*first, *second}) == 4 and all(path.is_file() for path in (*first, *second))
    data = json.loads(first[1].read_text())
    assert Comparison.model_validate(data["comparisons"][0]) == found[0]
    text = first[0].read_text()
    assert "NVIDIA H200, torch 2.11.0." in text and "fused: own choice" in text


def test_a_profile_is_laid_out_with_its_floors_and_formulas():
    kinds = (
        OpClass(name="product o", ms=20, launches=64, floor_ms=10, rate="600 TFLOP/s"),
        OpClass(name="gaps", ms=5, launches=0),
    )
    profile = Profile(step_ms=100, gemm_tflops=700, classes=kinds, trace="/x/t.json.gz")
    text = markdown([comparison(line_of("fused", [measured("fused", 80, profile=profile)]))])
    assert "| product o | 20.00 | 20.0% | 64 | 10.00 | 2.00 | 600 TFLOP/s |" in text
    assert "| gaps | 5.00 | 5.0% | 0 |  |  |  |" in text
    assert "2 T K N FLOPs" in text and "700 TFLOP/s" in text and "`t.json.gz`" in text


def test_reports_go_beside_the_others_in_the_repository_and_into_a_folder_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert report_folder(None) == Path("bench-reports")
    assert report_folder(tmp_path / "x") == tmp_path / "x"
    monkeypatch.chdir(Path(__file__).parents[3])
    assert report_folder(None) == Path("tests/bench/reports")


def test_a_speed_shown_by_the_measure_of_hf_says_so():
    near = GOOD.model_copy(update={"worst_cosine": 0.9912})
    line = line_of("fused", [measured("fused", 80, parity=near)], bar=0.9901)
    assert line.ms and "0.99120" in str(line.remark) and "0.99010" in str(line.remark)
    assert "| 0.99120† |" in markdown([comparison(line)])
    plain = line_of("fused", [measured("fused", 80)], bar=0.9901)
    assert plain.remark is None and "| 0.99950 |" in markdown([comparison(plain)])
    assert line_of("fused", [measured("fused", 80, parity=near)]).ms is None
