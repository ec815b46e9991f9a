"""The ladder on the page: outcomes from the gate's own checks, and a chart that puts every file where it belongs."""

import re

import pytest

from core.quantization.reports import Distance, OnnxBenchmark, OnnxFile, PytorchFile
from tasks.report.ladder_view import ladder_view
from tasks.report.page import CheckView, GateView, ReportData, render_report
from tests.tasks.report.conftest import digest
from tests.tasks.report.test_page import Reader, words


def check(name: str, passed: bool, threshold: float = 0.05) -> CheckView:
    return CheckView(
        name=name, observed=0.1, threshold=threshold, comparison="<=", passed=passed, is_limit=True
    )


CHECKS = (check("Q4_K_M drop", False), check("Q4_K_M drop, upper end", True, 0.1), check("Q8_0 drop", True))


LARGE = digest("9")


def view(full: ReportData, checks=CHECKS, shipped=LARGE):
    return ladder_view(full.quantized, full.tuned, checks, shipped)


def test_rungs_stand_from_small_to_large_with_what_the_gate_made_of_them(full: ReportData) -> None:
    small, large = view(full).rungs
    assert (small.file.type, small.outcome, small.why) == ("Q4_K_M", "rejected", "drop")
    assert (large.file.type, large.outcome, large.why) == ("Q8_0", "shipped", "")
    assert small.share == pytest.approx(2_140_000 / 6_900_000)
    assert small.drop == pytest.approx((0.908 - 0.881) / 0.908)
    assert view(full, (check("Q8_0 drop", True),), None).rungs[1].outcome == "good enough"
    assert [rung.outcome for rung in view(full, (), None).rungs] == ["not judged", "not judged"]


def test_files_lie_at_their_bytes_and_scores(full: ReportData) -> None:
    chart = view(full).chart
    assert chart is not None
    small, large = chart.spots
    assert 0 < small.x < large.x < 100
    assert small.x / large.x == pytest.approx(2_140_000 / 3_640_000, abs=1e-3)
    assert small.value > large.value  # positions run downwards
    for spot in chart.spots:
        assert 0 <= spot.high <= spot.value <= spot.low <= 100
    assert chart.merged == pytest.approx(large.value)
    span = chart.y_ticks[0].at - chart.y_ticks[1].at
    low, high = (float(tick.text.split("\u202f")[0]) for tick in chart.y_ticks[:2])
    assert chart.allowed - chart.merged == pytest.approx(100 * 0.05 * 0.908 * span / (high - low), abs=1e-2)


def test_real_bytes_of_everything_are_listed(full: ReportData) -> None:
    near = Distance(max_abs=2e-5, kl=1e-9, argmax_agreement=1.0, tokens=90)
    speed = OnnxBenchmark(provider="CPUExecutionProvider", prompt_tokens=20, mean_ms=8.5, std_ms=0.5, min_ms=8.0,
                          max_ms=10.0, tokens_per_second=345.0, iterations=30)  # fmt: skip
    onnx = OnnxFile(type="int8", path="models/onnx/int8", digest=digest("c"), bytes=4_100_000, distance=near,
                    decode_distance=near, text_agreement=0.99, benchmark=speed)  # fmt: skip
    data = full.model_copy(update={"quantized": full.quantized.model_copy(update={"onnx": (onnx,)})})
    sizes = view(data).sizes
    assert [row.name for row in sizes] == ["merged model", "ONNX int8", "GGUF Q8_0", "GGUF Q4_K_M"]
    assert [row.bytes for row in sizes] == [6_900_000, 4_100_000, 3_640_000, 2_140_000]
    text = words(render_report(data))
    for expected in ("ONNX models", "345", "99.0 %", "CPUExecutionProvider", "4,100,000", "59.4 %"):
        assert expected in text


def test_pytorch_models_have_a_table_and_their_real_bytes(full: ReportData) -> None:
    apart = Distance(max_abs=1.01, kl=2.75e-3, argmax_agreement=0.963, tokens=410)
    scored = full.tuned.model_copy(update={"value": 0.895, "tokens_per_second": 414.0})
    made = PytorchFile(type="int8", path="models/pytorch/int8", digest=digest("d"), bytes=3_469_472, distance=apart,
                       text_agreement=0.988, evaluation=scored)  # fmt: skip
    data = full.model_copy(update={"quantized": full.quantized.model_copy(update={"pytorch": (made,)})})
    assert [row.name for row in view(data).sizes] == [
        "merged model", "GGUF Q8_0", "PyTorch int8", "GGUF Q4_K_M",
    ]  # fmt: skip
    html = render_report(data)
    Reader(html)
    text = words(html)
    for expected in ("PyTorch models", "3,469,472", "98.8 %", "89.5 %", "96.3 %", "414", "0.00275", "1.01"):
        assert expected in text, expected
    assert "PyTorch models" not in words(render_report(full))


def test_the_page_shows_the_ladder_the_chart_and_what_was_tried(full: ReportData) -> None:
    gates = tuple(
        GateView(gate=g.gate, status=g.status, checks=CHECKS[2:], tried=CHECKS[:2], checked_at=g.checked_at)
        if g.gate == "quantization-verified"
        else g
        for g in full.gates
    )
    data = full.model_copy(update={"gates": gates, "shipped": digest("9")})
    html = render_report(data)
    Reader(html)
    text = words(html)
    for expected in (
        "Q8_0 shipped", "rejected drop", "411 positions", "4.4e-7", "95.7 %", "0.00213", "99.2 %",
        "Tried beside: on record, but these decide nothing", "the dashed one what the gate allows",
    ):  # fmt: skip
        assert expected in text, expected
    section = re.search(r'<section id="files".*?</section>', html, re.S)[0]
    assert section.count('class="whisker"') == 2
    assert section.count('d="M-5 -5') == 1


def test_skipped_types_and_calibration_are_told(full: ReportData) -> None:
    made = full.quantized.model_copy(update={"skipped": ("f16",), "importance_tokens": 5623})
    text = words(render_report(full.model_copy(update={"quantized": made})))
    assert "because a smaller one was good enough: f16" in text
    assert "weighed by 5,623 training tokens" in text


def test_a_report_without_files_or_distances_still_gives_a_page(full: ReportData) -> None:
    bare = full.quantized.files[0].model_copy(
        update={"distance": None, "text_agreement": None, "load_seconds": None}
    )
    for files in ((), (bare,)):
        made = full.quantized.model_copy(update={"files": files, "parity": None, "merged_bytes": 0})
        Reader(render_report(full.model_copy(update={"quantized": made, "tuned": None, "bundle": None})))


def test_where_less_is_better_scores_are_numbers_and_a_rise_is_the_drop(full: ReportData) -> None:
    def as_perplexity(report, value):
        entry = report.metrics["exact_match"].model_copy(
            update={"value": value, "low": value - 0.1, "high": value + 0.1}
        )
        return report.model_copy(
            update={"metric": "perplexity", "value": value, "metrics": {"perplexity": entry}}
        )

    files = tuple(
        f.model_copy(update={"evaluation": as_perplexity(f.evaluation, 4.4)}) for f in full.quantized.files
    )
    laid = ladder_view(
        full.quantized.model_copy(update={"files": files}), as_perplexity(full.tuned, 4.0), CHECKS, None
    )
    assert laid.rungs[0].score == "4.4"
    assert laid.rungs[0].drop == pytest.approx(0.1)
    assert laid.chart.allowed < laid.chart.merged  # above it on the page: more is worse
