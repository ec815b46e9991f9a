"""What the page says about sampled answers."""

import itertools
import re

import pytest

from core.evaluation.attempts import COLLAPSE, collapse_point, tries
from core.evaluation.reports import BaselineReport, Diversity, EvalReport, SeedSpread
from tasks.report.page import ReportData, render_report
from tasks.report.sampled_view import Sampled, sampled
from tests.tasks.report.test_evaluation_view import report

PASSED = [0.4, 0.6, 0.7, 0.75, 0.755, 0.757]


def drawn(passed: list[float], best: list[float] | None = None, **fields: object) -> Diversity:
    given: dict[str, object] = {
        "questions": 5, "samples": len(passed), "temperature": 0.7, "top_p": 0.9, "seeds": (1,),
        "metric": "exact_match", "self_bleu": 0.5, "distinct": {1: 0.4}, "type_token_ratio": 0.3, "semantic": None,
        "mean_words": 2.5, "pass_at": {k: passed[k - 1] for k in (1, 5) if k <= len(passed)},
        "tries": tries(passed, best or passed), "collapse_point": collapse_point(passed), "collapse_below": COLLAPSE,
        "spread": {}, "ids": ("q0",), "by_question": {},
    }  # fmt: skip
    return Diversity.model_validate(given | fields)


def seen(*arms: EvalReport, tuned: EvalReport | None = None) -> Sampled:
    found = sampled([*arms, *([tuned] if tuned else [])], arms[0] if arms else None, tuned)
    assert found is not None
    return found


@pytest.fixture
def base() -> EvalReport:
    return report("zero_shot", 0.1, diversity=drawn([0.1, 0.15, 0.18, 0.2, 0.22, 0.24], self_bleu=0.2))


@pytest.fixture
def tuned() -> EvalReport:
    return report("tuned", 0.5, diversity=drawn(PASSED))


def cells(found: Sampled) -> dict[str, tuple[str, ...]]:
    return dict(found.lines)


def test_nobody_sampled_nothing_said():
    assert sampled([report("zero_shot", 0.1)], None, None) is None


def test_every_arm_has_a_column(base: EvalReport, tuned: EvalReport):
    prompted = report("prompted", 0.1)
    found = seen(base, prompted, tuned=tuned)
    assert found.arms == ("zero_shot", "tuned")
    rows = cells(found)
    assert rows["Self-BLEU-4 (1: all the same)"] == ("0.2", "0.5")
    assert rows["Right among 5\u202ftries (pass@5)"] == ("22.0\u202f%", "75.5\u202f%")
    assert rows["One more try adds under 1\u202fpoint from"] == ("not within 6", "4")
    assert rows["No arm beats it in score and diversity"] == ("yes", "yes")
    assert "Semantic distance" not in rows
    assert found.note.endswith("one seed; right is Exact match at 1")


def test_what_has_too_few_words_is_a_dash_and_no_zero(base: EvalReport):
    short = report("tuned", 0.5, diversity=drawn(PASSED, distinct={}, type_token_ratio=None))
    rows = cells(seen(base, tuned=short))
    assert rows["Distinct-1"] == ("0.4", "\N{EM DASH}")
    assert rows["Different words among all"] == ("0.3", "\N{EM DASH}")


def test_the_ratio_stands_between_its_references(tuned: EvalReport):
    rows = cells(seen(tuned=tuned))
    assert rows["DER@6 (equal to independent tries)"] == ("0.3154 (0.1667 to 0.3972)",)
    assert rows["Gain of 6\u202ftries, of what independent ones gain"] == ("64.5\u202f%",)
    nothing = report("tuned", 0.0, diversity=drawn([0.0] * 3))
    assert cells(seen(tuned=nothing))["DER@3 (equal to independent tries)"] == ("none right",)


def test_seeds_show_their_spread(tuned: EvalReport):
    assert tuned.diversity is not None
    spread = {
        "self_bleu": SeedSpread(values=(0.4, 0.6), deviation=0.14142),
        "pass_at_1": SeedSpread(values=(0.375, 0.425), deviation=0.0354),
    }
    several = tuned.diversity.model_copy(update={"spread": spread, "seeds": (1, 2)})
    found = seen(tuned=tuned.model_copy(update={"diversity": several}))
    assert cells(found)["Self-BLEU-4 (1: all the same)"] == ("0.5 ± 0.14",)
    assert cells(found)["Right among 1\u202ftry (pass@1)"] == ("40.0\u202f% ± 3.5",)
    assert "2 seeds" in found.note


def test_the_curve_has_the_independent_tries_and_the_collapse_marked(base: EvalReport, tuned: EvalReport):
    chart = seen(base, tuned=tuned).chart
    assert chart is not None and chart.collapse is not None
    assert [line.kind for line in chart.lines] == ["smooth", "held", "raw"]
    own, reference, before = (line.dots for line in chart.lines)
    assert own[0] == reference[0] and all(a.y > b.y for a, b in zip(own[1:], reference[1:], strict=True))
    assert all(a.y < b.y for a, b in zip(own, before, strict=True))
    assert [dot.x for dot in own] == [0, 20, 40, 60, 80, 100]
    assert chart.collapse.at == own[3].x
    assert all(later.y <= earlier.y for earlier, later in itertools.pairwise(own))
    assert [tick.text for tick in chart.x_ticks] == ["1", "2", "3", "4", "5", "6"]
    assert chart.y_ticks[0] == (100, "0\u202f%")


def test_best_scores_are_a_curve_of_their_own_only_where_they_differ(tuned: EvalReport):
    best = [0.5, 0.7, 0.8, 0.85, 0.86, 0.87]
    found = seen(tuned=tuned.model_copy(update={"diversity": drawn(PASSED, best)}))
    assert found.chart is not None
    assert [line.kind for line in found.chart.lines] == ["smooth", "best", "held"]
    assert cells(found)["Best score of 5\u202ftries (USQ@5)"] == ("86.0\u202f%",)
    assert "Best score of 5\u202ftries (USQ@5)" not in cells(seen(tuned=tuned))


@pytest.mark.parametrize("passed", [[0.4], [0.0, 0.0], [1.0, 1.0], [0.3, 0.5]])
def test_any_curve_can_be_drawn(full: ReportData, passed: list[float]):
    tuned = report("tuned", 0.5, diversity=drawn(passed))
    page = render_report(full.model_copy(update={"tuned": tuned, "quantized": None}))
    assert "Sampled answers" in page
    assert ("what k tries at a question are worth" in page) == (len(passed) > 1)


def test_the_page_draws_curve_and_table(full: ReportData, base: EvalReport, tuned: EvalReport):
    page = render_report(
        full.model_copy(
            update={"baseline": BaselineReport(arms=(base,)), "compared": "zero_shot", "tuned": tuned}
        )
    )
    section = page[
        page.index("Sampled answers</h3>") : page.index("</section>", page.index("Sampled answers</h3>"))
    ]
    assert len(re.findall(r"<polyline class=\"(?:smooth|held|raw)\"", section)) == 3
    assert "one more adds under 1\u202fpoint" in section and "DER@6" in section
    assert "nan" not in section.lower()
