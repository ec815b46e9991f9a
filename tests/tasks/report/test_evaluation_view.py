"""What the page says about scores, and what it does not say."""

import math
import random

import pytest

from core.evaluation.reports import (
    BaselineReport,
    Decoding,
    EvalReport,
    MetricValue,
    Subgroup,
    Suite,
)
from tasks.report.answers import AnswerRow
from tasks.report.beside_view import Scored
from tasks.report.evaluation_view import evaluation_view

N = 40


def entry(value: float, half: float = 0.1) -> MetricValue:
    return MetricValue(value=value, low=value - half, high=value + half, n=N)


def report(arm: str, right: float, **fields: object) -> EvalReport:
    scores = tuple(float(place < right * N) for place in range(N))
    given: dict[str, object] = {
        "arm": arm,
        "metric": "exact_match",
        "value": right,
        "n": N,
        "metrics": {"exact_match": entry(right)},
        "ids": tuple(f"q{place}" for place in range(N)),
        "scores": {"exact_match": scores},
        "split_digest": "sha256:t",
        "model_digest": "sha256:m",
        "decoding": Decoding(strategy="greedy", max_new_tokens=8, prompt_digest="sha256:p"),
        "resamples": 1000,
        "confidence": 0.95,
        "seed": 1,
        "tokens_per_second": 10.0,
    }
    return EvalReport.model_validate(given | fields)


def surprised(arm: str, loss: float, **fields: object) -> EvalReport:
    value = math.exp(loss)
    return report(
        arm,
        0.0,
        metric="perplexity",
        value=value,
        metrics={"perplexity": entry(value)},
        scores={"perplexity": (loss,) * N},
        weights={"perplexity": (3.0,) * N},
        **fields,
    )


@pytest.fixture
def scored() -> Scored:
    base = BaselineReport(arms=(report("zero_shot", 0.1), report("prompted", 0.3)))
    return Scored(base, "prompted", report("tuned", 0.9))


def test_nothing_measured_nothing_drawn() -> None:
    assert evaluation_view(Scored()) is None


def test_changes_are_against_the_arm_that_was_compared(scored: Scored) -> None:
    view = evaluation_view(scored)
    assert view is not None
    told = {line.name: line.cells[0] for line in view.lines}
    assert [line.is_compared for line in view.lines] == [False, True, False]
    assert (told["tuned"].change, told["tuned"].tone) == ("+60.0", "up")
    assert told["prompted"].change == ""
    assert told["zero_shot"].tone == ""  # the intervals touch


def test_gains_are_paired_over_every_arm_and_zero_is_on_the_axis(scored: Scored) -> None:
    view = evaluation_view(scored)
    assert view is not None and view.gains is not None
    assert [line.text for line in view.gains.lines] == ["+80.0", "+60.0"]
    assert [tick.at for tick in view.gains.chart.ticks if tick.text == "0"] == [view.gains.zero]
    assert view.gains.chart.whiskers[0].value > view.gains.chart.whiskers[1].value > view.gains.zero


@pytest.mark.parametrize(
    "spoiled",
    [{"ids": ("x",) * N}, {"split_digest": "sha256:o"}, {"metric": "f"}, {"scores": {}}, {"metrics": {}}],
)
def test_an_arm_that_cannot_be_paired_gets_no_gain_and_breaks_nothing(scored: Scored, spoiled: dict) -> None:
    assert scored.base is not None
    broken = scored.base.arms[0].model_copy(update=spoiled)
    view = evaluation_view(scored._replace(base=BaselineReport(arms=(broken, scored.base.arms[1]))))
    assert view is not None and view.gains is not None
    assert [line.name for line in view.gains.lines] == ["prompted"]


def test_a_lower_perplexity_is_good_news_in_its_own_unit() -> None:
    base = BaselineReport(arms=(surprised("zero_shot", 2.0),))
    view = evaluation_view(Scored(base, "zero_shot", surprised("tuned", 1.0)))
    assert view is not None and view.gains is not None and view.less_is_better
    cell = view.lines[1].cells[0]
    assert cell is not None
    assert (cell.value, cell.change, cell.tone) == ("2.718", "\N{MINUS SIGN}4.67", "up")
    assert view.gains.lines[0].text == "+4.67"


def test_subgroups_stand_side_by_side_and_a_lone_one_is_left_out(scored: Scored) -> None:
    def groups(**values: float) -> tuple[Subgroup, ...]:
        named = [
            Subgroup(key="topic", name=k, n=9, metrics={"exact_match": entry(v)}) for k, v in values.items()
        ]
        return (*named, Subgroup(key="language", name="en", n=N, metrics={"exact_match": entry(0.5)}))

    assert scored.base is not None and scored.tuned is not None
    before = scored.base.arms[1].model_copy(update={"subgroups": groups(units=0.2, twi=0.6)})
    after = scored.tuned.model_copy(update={"subgroups": groups(units=0.9, twi=0.3)})
    view = evaluation_view(Scored(BaselineReport(arms=(before,)), "prompted", after))
    assert view is not None
    [table] = view.groups
    assert [(line.name, line.change, line.tone) for line in table.lines] == [
        ("units", "+70.0", "up"),
        ("twi", "\N{MINUS SIGN}30.0", "down"),
    ]
    assert all(0 <= at.value <= 100 for line in table.lines for at in (line.base_at, line.tuned_at) if at)


def suite(value: float, **fields: object) -> Suite:
    given = {"name": "general", "metric": "accuracy", "n": 80, "digest": "d"}
    return Suite.model_validate(
        {**given, "value": value, "low": value - 0.05, "high": value + 0.05, **fields}
    )


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (suite(0.5), "within chance"),
        (suite(0.2), "worse"),
        (suite(0.8), "better"),
        (suite(0.5, digest="other"), "not asked of both"),
    ],
)
def test_what_was_forgotten_is_told_with_chance(scored: Scored, after: Suite, verdict: str) -> None:
    assert scored.base is not None and scored.tuned is not None
    arm = scored.base.arms[0].model_copy(update={"suites": (suite(0.52),)})
    tuned = scored.tuned.model_copy(update={"suites": (after,)})
    view = evaluation_view(Scored(BaselineReport(arms=(arm,)), None, tuned))
    assert view is not None
    assert view.suites[0].verdict == verdict


def test_examples_that_moved_most_are_shown_where_scores_are_shares() -> None:
    random.seed(3)
    before, after = ([random.random() for _ in range(N)] for _ in range(2))
    base = report("zero_shot", 0.5, scores={"exact_match": tuple(before)})
    tuned = report("tuned", 0.5, scores={"exact_match": tuple(after)})
    rows = tuple(AnswerRow(id=f"q{place}", question="Q", reference="R") for place in range(N))
    view = evaluation_view(Scored(BaselineReport(arms=(base,)), "zero_shot", tuned, answers=rows))
    assert view is not None
    change = {f"q{place}": now - old for place, (old, now) in enumerate(zip(before, after, strict=True))}
    order = sorted(change, key=lambda key: change[key])
    assert [one.row.id for one in view.moved.fallen] == order[:5]
    assert [one.row.id for one in view.moved.risen] == order[:-6:-1]


def test_right_or_wrong_is_told_by_the_answers_already(scored: Scored) -> None:
    view = evaluation_view(scored)
    assert view is not None and view.moved == ((), ())
