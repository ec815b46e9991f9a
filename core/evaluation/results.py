"""The result files of an evaluation: what every arm scored, how its samples differ, and which differences hold.

They are made of reports alone, so that equal reports give equal files.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from core.evaluation.attempts import no_collapse
from core.evaluation.config import EvaluationConfig
from core.evaluation.contrasts import contrasts
from core.evaluation.metrics import JUDGE
from core.evaluation.reports import BaselineReport, Diversity, EvalReport
from core.evaluation.result_reports import (
    ArmDiversity,
    ArmJudged,
    ArmQuality,
    ArmTries,
    DiversityResults,
    Greedy,
    JudgeResults,
    QualityResults,
    ResultFile,
    Sampling,
    StatisticalResults,
    SummaryResults,
    TriesResults,
)
from core.evaluation.summary import arm_summaries, headlines, pareto_axes

FILES = {
    "diversity_metrics.json": DiversityResults,
    "quality_metrics.json": QualityResults,
    "passk_results.json": TriesResults,
    "llm_judge_results.json": JudgeResults,
    "statistical_tests.json": StatisticalResults,
    "summary.json": SummaryResults,
}
"""Every result file by its name, in the order they are made."""
NOT_SAMPLED = "evaluation.diversity.samples was 0"
NOT_SAMPLED_HERE = "this arm's answers were not sampled"
NO_ENCODER = "evaluation.encoder.model names no encoder"


class _Reports(NamedTuple):
    """What the files are made of."""

    base: tuple[EvalReport, ...]
    tuned: EvalReport
    config: EvaluationConfig

    @property
    def arms(self) -> tuple[EvalReport, ...]:
        """Every arm, the tuned model last."""
        return (*self.base, self.tuned)


def result_files(base: BaselineReport, tuned: EvalReport, config: EvaluationConfig) -> dict[str, ResultFile]:
    """Make the result files; the judge's is among them only if a judge was asked.

    Args:
        base: Every arm of the base.
        tuned: The tuned model's report.
        config: The evaluation block that both were made with.

    Returns:
        The files by their names.

    Raises:
        ValueError: If a score is not finite.
    """
    given = _Reports(base.arms, tuned, config)
    head = _head(tuned, config)
    tests = _tests(given, head)
    summaries = arm_summaries(given.arms)
    made: list[ResultFile] = [
        DiversityResults(**head, arms=tuple(_arm_diversity(arm) for arm in given.arms)),
        _quality(given, head),
        TriesResults(**head, arms=tuple(_arm_tries(arm) for arm in given.arms)),
        *([_judged(given, head)] if JUDGE in tuned.metrics else []),
        tests,
        SummaryResults(
            **head,
            primary_metric=tuned.metric,
            pareto_axes=pareto_axes(tuned.metric),
            arms=summaries,
            headlines=headlines(tuned, summaries, tests.contrasts),
        ),
    ]
    names = {kind: name for name, kind in FILES.items()}
    return {names[type(one)]: one for one in made}


def _head(tuned: EvalReport, config: EvaluationConfig) -> dict[str, Any]:
    drawn, decoding = tuned.diversity, tuned.decoding
    sampling = drawn and Sampling(
        samples=drawn.samples,
        questions=drawn.questions,
        temperature=drawn.temperature,
        top_p=drawn.top_p,
        seeds=drawn.seeds,
        max_new_tokens=config.max_new_tokens,
    )
    return {
        "split_digest": tuned.split_digest,
        "model_digest": tuned.model_digest,
        "deterministic": Greedy(strategy=decoding.strategy, max_new_tokens=decoding.max_new_tokens),
        "diverse": sampling,
        "absent": {} if sampling else {"diverse": NOT_SAMPLED},
    }


def _quality(given: _Reports, head: dict[str, Any]) -> QualityResults:
    tuned = given.tuned
    return QualityResults(
        **head,
        primary_metric=tuned.metric,
        confidence=tuned.confidence,
        resamples=tuned.resamples,
        seed=tuned.seed,
        arms=tuple(
            ArmQuality(
                arm=arm.arm,
                model_digest=arm.model_digest,
                prompt_digest=arm.decoding.prompt_digest,
                n=arm.n,
                metrics=arm.metrics,
            )
            for arm in given.arms
        ),
    )


def _tests(given: _Reports, head: dict[str, Any]) -> StatisticalResults:
    tuned = given.tuned
    made, left = contrasts(given.base, tuned)
    return StatisticalResults(
        **head,
        confidence=tuned.confidence,
        resamples=tuned.resamples,
        seed=tuned.seed,
        contrasts=made,
        left_out=left,
    )


def _judged(given: _Reports, head: dict[str, Any]) -> JudgeResults:
    judge = given.config.judge
    return JudgeResults(
        **head,
        judge=judge.model,
        instructions=judge.instructions,
        arms=tuple(
            ArmJudged(
                arm=arm.arm,
                model_digest=arm.model_digest,
                value=arm.metrics[JUDGE],
                scores=dict(zip(arm.ids, arm.scores[JUDGE], strict=True)),
            )
            for arm in given.arms
            if JUDGE in arm.metrics
        ),
    )


def _arm_diversity(arm: EvalReport) -> ArmDiversity:
    drawn = arm.diversity
    names = ("self_bleu", "distinct", "type_token_ratio", "semantic", "mean_words", "spread")
    figures: dict[str, Any] = {name: getattr(drawn, name) if drawn else None for name in names}
    return ArmDiversity(
        arm=arm.arm,
        model_digest=arm.model_digest,
        **figures,
        absent=_absent(names, drawn, semantic=NO_ENCODER),
    )


def _arm_tries(arm: EvalReport) -> ArmTries:
    drawn = arm.diversity
    names = ("metric", "tries", "collapse_point", "collapse_below")
    figures: dict[str, Any] = {name: getattr(drawn, name) if drawn else None for name in names}
    why = no_collapse([one.pass_at for one in drawn.tries]) if drawn else ""
    return ArmTries(
        arm=arm.arm,
        model_digest=arm.model_digest,
        **figures,
        absent=_absent(names, drawn, collapse_point=why),
    )


def _absent(names: Sequence[str], drawn: Diversity | None, **reasons: str) -> dict[str, str]:
    """Say why figures of sampled answers are null: all without samples, else those that have reasons of their own.

    A reason such as distinct_3's belongs where distinct does.
    """
    if drawn is None:
        return dict.fromkeys(names, NOT_SAMPLED_HERE)
    known = {name: why for name, why in drawn.absent.items() if name.rstrip("_0123456789") in names}
    return known | {name: reason for name, reason in reasons.items() if getattr(drawn, name) is None}
