"""The result files of an evaluation: what they say, what they leave out, and why."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from statsmodels.stats.multitest import multipletests

from core.evaluation.attempts import collapse_point, pass_at_k, tries
from core.evaluation.config import EvaluationConfig, JudgeConfig
from core.evaluation.contrasts import contrasts
from core.evaluation.effects import comparison, holm
from core.evaluation.reports import (
    BaselineReport,
    Decoding,
    Diversity,
    EvalReport,
    MetricValue,
    SeedSpread,
)
from core.evaluation.result_reports import Contrast
from core.evaluation.results import FILES, result_files
from core.evaluation.summary import arm_summaries

N = 40
ALWAYS = {"diversity_metrics.json", "quality_metrics.json", "passk_results.json", "statistical_tests.json", "summary.json"}  # fmt: skip


def drawn(counts: list[int], samples: int = 10, self_bleu: float = 0.5) -> Diversity:
    """Sampled answers of which so many are right, by question."""
    by_k = {k: [pass_at_k(samples, c, k) for c in counts] for k in range(1, samples + 1)}
    means = [sum(values) / len(counts) for values in by_k.values()]
    return Diversity(
        questions=len(counts), samples=samples, temperature=0.7, top_p=0.9, seeds=(1,), metric="exact_match",
        self_bleu=self_bleu, distinct={1: 0.4}, type_token_ratio=0.3, semantic=None, mean_words=2.5,
        pass_at={k: means[k - 1] for k in sorted({1, min(5, samples), samples})}, tries=tries(means, means),
        collapse_point=collapse_point(means), collapse_below=0.01,
        spread={"self_bleu": SeedSpread(values=(self_bleu,), deviation=None, absent={"deviation": "one seed"})},
        ids=tuple(f"q{place}" for place in range(len(counts))),
        by_question={"self_bleu": (self_bleu,) * len(counts), "mean_words": (2.5,) * len(counts),
                     **{f"{what}_at_5": tuple(by_k[min(5, samples)]) for what in ("pass", "usq")}},
    )  # fmt: skip


def report(arm: str, right: int, **fields: Any) -> EvalReport:
    scores = fields.pop("scores", {"exact_match": (1.0,) * right + (0.0,) * (N - right)})
    metrics = {name: sum(values) / len(values) for name, values in scores.items()}
    given: dict[str, Any] = {
        "arm": arm,
        "metric": "exact_match",
        "value": metrics["exact_match"],
        "n": N,
        "metrics": {
            name: MetricValue(value=v, low=v - 0.1, high=v + 0.1, n=N) for name, v in metrics.items()
        },
        "ids": tuple(f"e{place}" for place in range(N)),
        "scores": scores,
        "split_digest": "sha256:t",
        "model_digest": f"sha256:{'tuned' if arm == 'tuned' else 'base'}",
        "decoding": Decoding(strategy="greedy", max_new_tokens=8, prompt_digest=f"sha256:{arm}"),
        "resamples": 1000,
        "confidence": 0.95,
        "seed": 1,
        "tokens_per_second": 10.0,
    }
    return EvalReport.model_validate(given | fields)


def files(base: BaselineReport, tuned: EvalReport, **settings: Any) -> dict[str, Any]:
    made = result_files(base, tuned, EvaluationConfig(**settings))
    return {name: json.loads(one.model_dump_json()) for name, one in made.items()}


@pytest.fixture
def base() -> BaselineReport:
    return BaselineReport(
        arms=(
            report("zero_shot", 4, diversity=drawn([0, 1, 2] * 6, self_bleu=0.2)),
            report("prompted", 10, diversity=drawn([5, 1, 2] * 6, self_bleu=0.6)),
        )
    )


@pytest.fixture
def tuned() -> EvalReport:
    return report("tuned", 36, diversity=drawn([10, 9, 0] * 6, self_bleu=0.7))


def nulls(value: Any, where: str = "") -> Iterator[tuple[str, bool]]:
    """Yield every null, and whether its reason stands beside it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if inner is None:
                yield f"{where}.{key}", bool(value.get("absent", {}).get(key))
            yield from nulls(inner, f"{where}.{key}")
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from nulls(inner, f"{where}[{place}]")


def test_every_file_says_what_was_asked_of_what_and_how(base: BaselineReport, tuned: EvalReport):
    made = files(base, tuned)
    assert set(made) == ALWAYS
    for content in made.values():
        assert (content["schema_version"], content["split_digest"]) == (1, "sha256:t")
        assert content["model_digest"] == "sha256:tuned"
        assert content["deterministic"] == {"strategy": "greedy", "samples": 1, "max_new_tokens": 8}
        assert content["diverse"] == {
            "samples": 10, "questions": 18, "temperature": 0.7, "top_p": 0.9, "seeds": [1], "max_new_tokens": 64,
        }  # fmt: skip
    by_arm = [[arm["arm"] for arm in content["arms"]] for content in made.values() if "arms" in content]
    assert by_arm == [["zero_shot", "prompted", "tuned"]] * 4
    assert made["quality_metrics.json"]["arms"][0]["metrics"]["exact_match"]["value"] == 0.1
    assert made["diversity_metrics.json"]["arms"][1]["self_bleu"] == 0.6
    assert len(made["passk_results.json"]["arms"][2]["tries"]) == 10


def test_every_null_has_its_reason(base: BaselineReport, tuned: EvalReport):
    graded = {"token_f1": (0.5,) * N, "exact_match": (1.0,) * N}
    cases = [
        files(base, tuned),
        files(BaselineReport(arms=()), report("tuned", 3)),
        files(base, report("tuned", 40, diversity=drawn([0] * 18))),
        files(BaselineReport(arms=(report("zero_shot", 0, scores={**graded, "token_f1": (0.2,) * N}),)),
              report("tuned", 0, scores=graded, diversity=drawn([5] * 18))),
    ]  # fmt: skip
    found = [
        (where, told)
        for made in cases
        for name, content in made.items()
        for where, told in nulls(content, name)
    ]
    assert len(found) > 40
    assert [where for where, told in found if not told] == []


def test_what_was_not_sampled_is_null_and_never_zero(base: BaselineReport):
    plain = BaselineReport(arms=tuple(arm.model_copy(update={"diversity": None}) for arm in base.arms))
    made = files(plain, report("tuned", 9))
    assert (
        made["summary.json"]["diverse"] is None
        and "samples was 0" in made["summary.json"]["absent"]["diverse"]
    )
    for arm in made["passk_results.json"]["arms"] + made["summary.json"]["arms"]:
        assert arm["collapse_point"] is None and "not sampled" in arm["absent"]["collapse_point"]
    assert not any("Pareto" in line or "beats" in line for line in made["summary.json"]["headlines"])
    assert [one["metric"] for one in made["statistical_tests.json"]["contrasts"]] == ["exact_match"] * 2


def test_verdicts_of_the_judge_have_a_file_only_where_a_judge_was_asked(
    base: BaselineReport, tuned: EvalReport
):
    scores = {"exact_match": (1.0,) * N, "judge": (0.3,) * N}
    judge = JudgeConfig(url="http://127.0.0.1:9/v1", model="wise", instructions="Be fair.")
    made = files(base, report("tuned", 40, scores=scores), judge=judge)
    assert set(made) == {*ALWAYS, "llm_judge_results.json"} == set(FILES)
    content = made["llm_judge_results.json"]
    assert (content["judge"], content["instructions"]) == ("wise", "Be fair.")
    assert [arm["arm"] for arm in content["arms"]] == ["tuned"]
    assert content["arms"][0]["scores"]["e7"] == 0.3
    left = made["statistical_tests.json"]["left_out"]
    assert {(one["against"], one["metric"]) for one in left} >= {
        ("zero_shot", "judge"),
        ("prompted", "judge"),
    }


def test_the_front_is_of_quality_and_diversity_together(base: BaselineReport, tuned: EvalReport):
    summary = files(base, tuned)["summary.json"]
    assert summary["pareto_axes"] == ["exact_match", "1 - self_bleu"]
    # zero_shot is the most diverse, tuned the best; prompted is neither, but nobody beats it in both.
    assert [arm["pareto_optimal"] for arm in summary["arms"]] == [True, True, True]
    worse = BaselineReport(
        arms=(base.arms[0], report("prompted", 2, diversity=drawn([1] * 18, self_bleu=0.9)))
    )
    summary = files(worse, tuned)["summary.json"]
    assert [arm["pareto_optimal"] for arm in summary["arms"]] == [True, False, True]
    assert summary["headlines"][-1].endswith("at once: zero_shot, tuned")


def test_a_low_perplexity_is_good_on_the_front():
    def surprised(arm: str, value: float, self_bleu: float) -> EvalReport:
        return report(
            arm, 0, metric="perplexity", value=value, diversity=drawn([1] * 18, self_bleu=self_bleu),
            metrics={"perplexity": MetricValue(value=value, low=value, high=value, n=N)},
        )  # fmt: skip

    found = arm_summaries([surprised("zero_shot", 9.0, 0.5), surprised("tuned", 2.0, 0.4)])
    assert [one.pareto_optimal for one in found] == [False, True]


def test_headlines_say_the_verdicts_in_words(base: BaselineReport, tuned: EvalReport):
    told = files(base, tuned)["summary.json"]["headlines"]
    assert told[0].startswith("exact_match: tuned 0.9 against zero_shot 0.1, difference +0.8 [")
    assert ", better (mcnemar, p = " in told[0]
    assert told[2] == "tuned, sampled: pass@1 0.6333, pass@10 0.6667"
    assert told[3].startswith(
        "tuned, sampled: 10 tries gain 9% of what as many independent tries would (DER@10 0.105,"
    )
    assert told[4] == "tuned, sampled: one more try adds less than 0.01 to pass@k from k = 2 of 10 tries"


# Tests between arms


def by_metric(found: tuple[Contrast, ...], against: str = "zero_shot") -> dict[str, Contrast]:
    return {one.metric: one for one in found if one.against == against}


def test_contrasts_are_the_tests_over_examples(base: BaselineReport, tuned: EvalReport):
    found, left = contrasts(base.arms, tuned)
    assert left == ()
    names = ["exact_match", "diversity.self_bleu", "diversity.pass_at_5"]
    assert [(one.against, one.metric) for one in found] == list(
        itertools.product(("zero_shot", "prompted"), names)
    )
    one = by_metric(found)["exact_match"]
    wanted = comparison(
        base.arms[0].scores["exact_match"],
        tuned.scores["exact_match"],
        resamples=1000,
        confidence=0.95,
        seed=1,
    )
    assert (one.difference, one.low, one.high) == tuple(wanted.difference)
    assert (one.fixed, one.broken, one.mcnemar_p) == (32, 0, wanted.flips.p_value)
    assert (one.wilcoxon_p, one.t_p, one.mann_whitney_p) == (
        wanted.wilcoxon_p,
        wanted.t_p,
        wanted.mann_whitney_p,
    )
    assert (one.cohens_dz, one.cohens_d, one.cliffs_delta) == (
        wanted.cohens_dz,
        wanted.cohens_d,
        wanted.cliffs_delta,
    )
    assert (one.n, one.base_mean, one.tuned_mean, one.verdict) == (40, 0.1, 0.9, "better")
    sampled = by_metric(found)["diversity.pass_at_5"]
    assert (sampled.n, sampled.decided_by) == (18, "wilcoxon")


def test_more_alike_samples_are_worse_and_fewer_losses_are_better(base: BaselineReport, tuned: EvalReport):
    losses = {"exact_match": (1.0,) * N, "perplexity": tuple(2 + place / N for place in range(N))}
    lower = {"exact_match": (1.0,) * N, "perplexity": tuple(1 + place / N**2 for place in range(N))}
    arm = base.arms[0].model_copy(update={"scores": losses})
    found = by_metric(contrasts([arm], tuned.model_copy(update={"scores": lower}))[0])
    assert (found["perplexity"].verdict, found["perplexity"].higher_is_better) == ("better", False)
    assert found["diversity.self_bleu"].verdict == "worse"
    assert found["exact_match"].verdict == "no difference shown"


def test_best_scores_that_are_another_thing_than_right_ones_are_tested_too(
    base: BaselineReport, tuned: EvalReport
):
    assert tuned.diversity is not None
    graded = {**tuned.diversity.by_question, "usq_at_5": (0.9,) * 18}
    other = tuned.model_copy(update={"diversity": tuned.diversity.model_copy(update={"by_question": graded})})
    assert "diversity.usq_at_5" in by_metric(contrasts(base.arms, other)[0])
    assert "diversity.usq_at_5" not in by_metric(contrasts(base.arms, tuned)[0])


@pytest.mark.parametrize("spoiled", [{"ids": ("x",) * N}, {"split_digest": "sha256:o"}])
def test_other_questions_are_not_compared_and_it_is_said(
    base: BaselineReport, tuned: EvalReport, spoiled: dict[str, Any]
):
    arm = base.arms[0].model_copy(update=spoiled)
    found, left = contrasts([arm], tuned)
    assert "exact_match" not in by_metric(found)
    assert ("exact_match", "they were not asked the same questions") in {
        (one.metric, one.reason) for one in left
    }


def test_samples_of_other_questions_are_not_compared(base: BaselineReport, tuned: EvalReport):
    assert tuned.diversity is not None
    moved = tuned.diversity.model_copy(update={"ids": tuned.diversity.ids[::-1]})
    found, left = contrasts(base.arms[:1], tuned.model_copy(update={"diversity": moved}))
    assert [one.metric for one in found] == ["exact_match"]
    assert {one.metric for one in left} == {"diversity.self_bleu", "diversity.pass_at_5"}


@pytest.mark.parametrize(
    "p_values", [[0.5], [0.01, 0.04, 0.03], [0.9, 0.2, 0.2, 0.001], [1.0, 0.0, 0.6], [0.02, 0.02, 0.02]]
)
def test_holm_agrees_with_statsmodels(p_values: list[float]):
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def test_adjustment_is_among_comparisons_of_one_kind(base: BaselineReport, tuned: EvalReport):
    found = contrasts(base.arms, tuned)[0]
    for kind in (True, False):
        ones = [one for one in found if one.metric.startswith("diversity.") is kind]
        assert [one.p_holm for one in ones] == pytest.approx(holm([one.p_value for one in ones]))
    assert holm([]) == []


def shifted(base: list[float], tuned: list[float], metric: str = "token_f1") -> Contrast:
    """Compare scores of 200 examples."""

    def arm(name: str, scores: list[float]) -> EvalReport:
        ids = tuple(f"e{place}" for place in range(len(scores)))
        return report(name, 0, scores={"exact_match": (0.0,) * len(scores), metric: tuple(scores)}, ids=ids)

    return by_metric(contrasts([arm("zero_shot", base)], arm("tuned", tuned))[0])[metric]


RISEN = [0.52 + place / 1e5 for place in range(191)]
FALLEN = [0.48 - place / 1e5 for place in range(191)]


@pytest.mark.parametrize(
    ("tuned", "metric", "disagreement"),
    [
        ([*RISEN, *[0.0] * 9], "token_f1", "better by ranks, worse by the mean"),
        ([*FALLEN, *[1.0] * 9], "token_f1", "worse by ranks, better by the mean"),
        ([*RISEN, *[0.0] * 9], "perplexity", "worse by ranks, better by the mean"),
    ],
)
def test_where_ranks_and_mean_point_apart_nothing_is_called_better_or_worse(
    tuned: list[float], metric: str, disagreement: str
):
    one = shifted([0.5] * 200, tuned, metric)
    assert one.p_holm < 1e-20 and one.low < 0 < one.high
    assert (one.verdict, one.disagreement[0]) == ("undecided", disagreement)
    assert one.disagreement[1].startswith("the interval of the mean, ") and len(one.disagreement) == 2
    assert one.rank_biserial * one.difference < 0


def test_an_interval_that_holds_0_leaves_it_undecided_though_the_mean_follows_the_ranks():
    one = shifted([0.5] * 200, [*RISEN, *[0.1] * 9])
    assert one.difference > 0 and one.rank_biserial > 0 and one.low < 0
    assert one.verdict == "undecided" and len(one.disagreement) == 1 and "holds 0" in one.disagreement[0]


def test_a_mean_that_falls_beyond_doubt_while_most_examples_rise_is_undecided():
    one = shifted([0.5] * 200, [*RISEN[:160], *[0.0] * 40])
    assert one.p_holm < 0.01 and one.high < 0 < one.rank_biserial
    assert (one.verdict, one.disagreement) == ("undecided", ("better by ranks, worse by the mean",))


@pytest.mark.parametrize(
    ("tuned", "metric", "verdict"),
    [
        ([*RISEN, *[0.49] * 9], "token_f1", "better"),
        ([*FALLEN, *[0.51] * 9], "token_f1", "worse"),
        ([*RISEN, *[0.49] * 9], "perplexity", "worse"),
        ([*FALLEN, *[0.51] * 9], "perplexity", "better"),
        ([0.5, 0.6] * 100, "token_f1", "better"),
        ([0.5] * 198 + [0.6, 0.4], "token_f1", "no difference shown"),
    ],
)
def test_where_ranks_mean_and_interval_agree_there_is_a_verdict(
    tuned: list[float], metric: str, verdict: str
):
    one = shifted([0.5] * 200, tuned, metric)
    assert (one.verdict, one.disagreement, one.decided_by) == (verdict, (), "wilcoxon")


def test_right_and_wrong_are_judged_by_mcnemar_alone():
    one = shifted([0.0] * 12 + [1.0] * 28, [1.0] * 39 + [0.0], "json_valid")
    assert (one.decided_by, one.verdict, one.disagreement) == ("mcnemar", "better", ()) and one.p_holm < 0.05


def test_the_headline_says_what_disagrees():
    scores = {"exact_match": (*RISEN, *[0.0] * 9)}
    ids = tuple(f"e{place}" for place in range(200))
    base = report("zero_shot", 0, scores={"exact_match": (0.5,) * 200}, ids=ids)
    told = files(BaselineReport(arms=(base,)), report("tuned", 0, scores=scores, ids=ids))
    line = told["summary.json"]["headlines"][0]
    assert ", undecided (wilcoxon, p = " in line
    assert "; better by ranks, worse by the mean; the interval of the mean, -0.0" in line


# Tries that have no collapse point


@pytest.mark.parametrize(
    ("counts", "samples", "reason"),
    [
        ([1, 0], 1, "there is one try, and no further one"),
        ([0, 0], 1, "there is one try, and no further one"),
        ([0] * 18, 10, "no answer was right"),
        ([1] * 18, 10, "every one of 10 tries adds more"),
    ],
)
def test_why_there_is_no_collapse_point_is_said_in_every_place(counts: list[int], samples: int, reason: str):
    made = files(BaselineReport(arms=()), report("tuned", 3, diversity=drawn(counts, samples)))
    for name in ("passk_results.json", "summary.json"):
        arm = made[name]["arms"][0]
        assert (arm["collapse_point"], arm["absent"]["collapse_point"]) == (None, reason)
    told = made["summary.json"]["headlines"]
    assert any(line.endswith(f"adds less than 0.01 to pass@k: {reason}") for line in told)
    assert sum(line.count("pass@1 ") for line in told) == 1 and not any("1 tries" in line for line in told)
    assert nulls_without_reason(made) == []


def nulls_without_reason(made: dict[str, Any]) -> list[str]:
    return [where for name, content in made.items() for where, told in nulls(content, name) if not told]


def test_a_reason_stands_only_where_its_figure_would():
    short = drawn([0] * 18).model_copy(
        update={"type_token_ratio": None, "absent": {"distinct_3": "too short", "type_token_ratio": "no word",
                                                     "collapse_point": "no answer was right"}}
    )  # fmt: skip
    made = files(BaselineReport(arms=()), report("tuned", 3, diversity=short))
    absent = {
        name: made[name]["arms"][0]["absent"] for name in ("diversity_metrics.json", "passk_results.json")
    }
    assert absent == {
        "diversity_metrics.json": {"distinct_3": "too short", "type_token_ratio": "no word",
                                   "semantic": "evaluation.encoder.model names no encoder"},
        "passk_results.json": {"collapse_point": "no answer was right"},
    }  # fmt: skip
