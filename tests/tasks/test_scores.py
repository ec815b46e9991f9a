"""Which way of asking is on top of the baseline's files, and what MLflow shows of scores."""

import json
import os
from pathlib import Path

import pytest
from mlflow.utils.validation import _validate_metric_name
from pydantic import SecretStr

from core.evaluation.attempts import tries
from core.evaluation.reports import BaselineReport, Diversity, MetricValue, SeedSpread, Subgroup, Suite
from gates.thresholds import GatesConfig
from gates.verdict import Verdict, at_least
from tasks import gate
from tasks.context import RunContext, running
from tasks.score_figures import score_figures, subgroup_rows, tries_curve
from tasks.scores import answers_of, compare, forget_arms, headed, share
from tasks.tracking import _safe
from tasks.workspace import Workspace
from tests.gates.conftest import evaluation, right


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return RunContext(
        name="t", workspace=Workspace(tmp_path), tracker=None, watcher=None, base=tmp_path, gates=GatesConfig(),
        judge_key=SecretStr("sk-secret"),
    )  # fmt: skip


@pytest.fixture
def base(context: RunContext) -> BaselineReport:
    arms = (evaluation("zero_shot", right(6), "base"), evaluation("prompted", right(12), "base"))
    context.workspace.metrics.mkdir(parents=True)
    for arm in arms:
        answers_of(context.workspace.metrics, arm.arm).write_text(f'{{"id": "{arm.arm}"}}\n')
    return BaselineReport(arms=arms)


def test_the_arm_to_beat_is_on_top_with_the_contracts_keys(context: RunContext, base: BaselineReport):
    with running(context):
        assert compare(base, "best").arm == "prompted"
    scores = json.loads((context.workspace.metrics / "baseline.json").read_text())
    wanted = {"metric", "value", "n", "interval", "timestamp", "split_digest", "model_digest", "decoding"}
    assert wanted <= scores.keys()
    assert (scores["value"], [arm["value"] for arm in scores["arms"]]) == (0.2, [0.1, 0.2])
    assert '"prompted"' in (context.workspace.metrics / "baseline-answers.jsonl").read_text()
    assert set(context.evidence) == {"metrics/baseline.json", "metrics/baseline-answers.jsonl"}


def test_another_choice_rewrites_the_files_and_the_same_one_does_not(
    context: RunContext, base: BaselineReport
):
    path = context.workspace.metrics / "baseline.json"
    with running(context):
        compare(base, "best")
        os.utime(path, ns=(1, 1))
        compare(base, "prompted")
        assert path.stat().st_mtime_ns == 1
        compare(base, "zero_shot")
    assert json.loads(path.read_text())["arm"] == "zero_shot"
    assert '"zero_shot"' in (context.workspace.metrics / "baseline-answers.jsonl").read_text()


def test_an_edited_file_is_mended(context: RunContext, base: BaselineReport):
    with running(context):
        compare(base, "best")
        for name in ("baseline.json", "baseline-answers.jsonl"):
            (context.workspace.metrics / name).write_text("[]")
        compare(base, "best")
    assert json.loads((context.workspace.metrics / "baseline.json").read_text())["value"] == 0.2
    assert '"prompted"' in (context.workspace.metrics / "baseline-answers.jsonl").read_text()


def test_answers_of_arms_no_longer_asked_are_removed(context: RunContext, base: BaselineReport):
    folder = context.workspace.metrics
    forget_arms(folder, [answers_of(folder, "prompted")])
    assert [path.name for path in folder.iterdir()] == ["baseline-prompted-answers.jsonl"]


def test_a_perplexity_is_no_share():
    report = evaluation("tuned", right(6), "m")
    assert share(report) == 0.1
    assert share(report.model_copy(update={"metric": "perplexity"})) is None
    assert headed(report)["interval"] == [0.0, 1.0]


def test_every_arm_and_subgroup_is_a_metric_that_mlflow_takes():
    value = MetricValue(value=0.5, low=0.4, high=0.6, n=9)
    group = Subgroup(key="topic/area", name="a % b: c/d", n=9, metrics={"exact_match": value})
    suite = Suite(name="arc/easy", metric="acc,none", value=0.3, low=0.2, high=0.4, n=5, digest="d")
    drawn = Diversity(questions=5, samples=2, temperature=0.7, top_p=0.9, seeds=(1, 2), metric="exact_match",
                      self_bleu=0.5, distinct={1: 0.4}, type_token_ratio=0.3, semantic=0.2, mean_words=2.5,
                      pass_at={1: 0.25}, tries=tries([0.25, 0.4], [0.3, 0.5]), collapse_point=None,
                      collapse_below=0.01, spread={"pass_at_1": SeedSpread(values=(0.2, 0.3), deviation=0.07)},
                      ids=("q",), by_question={"pass_at_1": (0.25,)})  # fmt: skip
    arm = evaluation("prompted", right(6), "m").model_copy(
        update={"subgroups": (group,), "suites": (suite,), "diversity": drawn}
    )
    figures = dict(score_figures([arm]))
    assert figures["prompted.exact_match"] == 0.1
    assert figures["prompted.topic_area.a % b: c_d.exact_match"] == 0.5
    assert figures["prompted.arc_easy.acc,none"] == 0.3
    assert figures["prompted.diversity.pass_at_1"] == 0.25
    assert figures["prompted.diversity.usq_at_1"] == 0.3
    assert figures["prompted.diversity.pass_at_1.deviation"] == 0.07
    assert "prompted.diversity.collapse_point" not in figures
    curve = tries_curve([arm])
    assert [curve[k]["prompted.diversity.pass_at_k"] for k in (1, 2)] == [0.25, 0.4]
    assert [curve[k]["prompted.diversity.usq_at_k"] for k in (1, 2)] == [0.3, 0.5]
    assert "prompted.diversity.tries_efficiency_k" not in curve[1]
    assert curve[2]["prompted.diversity.der_k"] == pytest.approx(0.8)
    for name in (*figures, *curve[2]):
        _validate_metric_name(_safe(name))
    assert subgroup_rows([arm])[0]["value"] == "a % b: c/d"


def test_the_judges_key_is_in_no_text_of_the_run(context: RunContext):
    assert "sk-secret" not in repr(context)


def test_advice_is_recorded_only_where_a_gate_closed(context: RunContext):
    for observed, told in ((1, ("lower the rate",)), (3, ())):
        verdict = Verdict.of("model-performance", [at_least("gain", observed, 2)])
        record = gate.make_record(context, verdict, None, () if verdict.passed else ("lower the rate",))
        assert record.hints == told
