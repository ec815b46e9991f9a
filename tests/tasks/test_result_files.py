"""The phases around a tiny model: what lies in ``metrics/`` afterwards, and what belongs to a phase's key."""

import inspect
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.artifacts import Checkpoint, Splits, fingerprint, write_jsonl
from core.evaluation.config import EvaluationConfig
from core.evaluation.reports import BaselineReport
from gates.thresholds import GatesConfig
from tasks import baseline, evaluate
from tasks.context import RunContext, running
from tasks.result_files import write_results
from tasks.workspace import Workspace
from tests.gates.conftest import evaluation, right

CONFIG = EvaluationConfig.model_validate(
    {
        "metrics": ("exact_match", "rouge_1", "rouge_2"),
        "diversity": {"samples": 3, "questions": 4, "seeds": (42, 123)},
        "baseline": {"arms": ("zero_shot", "prompted")},
        "general": {"enabled": False},
        "max_new_tokens": 4,
        "resamples": 1000,
    }
)
BASE = Path(__file__).parents[2] / "data/tutor_base/model"
FILES = {"diversity_metrics.json", "quality_metrics.json", "passk_results.json", "statistical_tests.json", "summary.json"}  # fmt: skip


@pytest.fixture
def splits(tmp_path: Path) -> Splits:
    for name in ("train", "val", "test"):
        asked = [("What is 3 + 4?", "7."), ("The capital of Ghana?", "Accra."), ("Good morning?", "Maakye."),
                 ("A pen and a book?", "GH₵11."), ("Ɛte sɛn?", "Me ho yɛ.")]  # fmt: skip
        turns = [[{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in asked]
        rows = [{"id": f"{name}{n}", "conversations": each, "metadata": {}} for n, each in enumerate(turns)]
        write_jsonl(tmp_path / "splits" / f"{name}.jsonl", rows)
    return Splits.of(tmp_path / "splits")


def run_in(folder: Path) -> Any:
    watcher = SimpleNamespace(advanced=lambda *told: None, noted=lambda *told: None)
    return RunContext(
        name="t", workspace=Workspace(folder), tracker=None, watcher=watcher, base=folder, gates=GatesConfig()
    )  # type: ignore[arg-type]


def body(call: Any) -> Any:
    """What a phase does, without Prefect and without its memory."""
    carried = inspect.getclosurevars(call).nonlocals["carried"]
    return inspect.getclosurevars(carried.fn).nonlocals["body"]


def test_every_arm_is_sampled_with_every_seed_and_all_of_it_is_an_output(tmp_path: Path, splits: Splits):
    context = run_in(tmp_path / "ws")
    given = (Checkpoint.of(BASE), splits, CONFIG, {}, "chatml")
    with running(context):
        base = body(baseline.baseline)(context, "key", *given).result.report
        done = body(evaluate._evaluate)(context, "key", *given[:2], base, *given[2:])
    assert [arm.diversity.seeds for arm in base.arms] == [(42, 123)] * 2
    assert {path.name for path in done.outputs} == {*FILES, "evaluation.json", "evaluation-answers.jsonl"}
    assert all(path.is_file() for path in done.outputs)
    made = {name: json.loads((context.workspace.metrics / name).read_text()) for name in FILES}
    assert {content["model_digest"] for content in made.values()} == {done.result.report.model_digest}
    figures = made["diversity_metrics.json"]["arms"]
    assert [arm["arm"] for arm in figures] == ["zero_shot", "prompted", "tuned"]
    assert all(len(arm["spread"]["self_bleu"]["values"]) == 2 for arm in figures)
    # Here the tuned model is the base: the same prompts with the same seeds draw the same answers.
    assert figures[0]["spread"] == figures[2]["spread"]
    assert figures[0]["spread"] != figures[1]["spread"]
    tests = made["statistical_tests.json"]
    same = [one for one in tests["contrasts"] if one["against"] == "zero_shot"]
    assert {one["metric"] for one in same} > {"exact_match", "rouge_1", "rouge_2", "diversity.self_bleu"}
    assert {(one["difference"], one["p_value"]) for one in same} == {(0.0, 1.0)}
    assert tests["left_out"] == []
    # All three samples are in the files, beside the first.
    assert {one["metric"] for one in same} > {"diversity.pass_at_1", "diversity.pass_at_3"}
    assert all(
        list(arm["pass_at"]) == list(arm["usq_at"]) == ["1", "3"] for arm in made["summary.json"]["arms"]
    )


def test_the_file_of_a_judge_that_is_no_longer_asked_is_removed(tmp_path: Path):
    (tmp_path / "llm_judge_results.json").write_text("{}")
    tuned, base = (
        evaluation("tuned", right(30), "m"),
        BaselineReport(arms=(evaluation("zero_shot", right(9), "b"),)),
    )
    written = write_results(tmp_path, base, tuned, CONFIG)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written} == FILES


def test_equal_reports_give_equal_files(tmp_path: Path):
    tuned, base = (
        evaluation("tuned", right(30), "m"),
        BaselineReport(arms=(evaluation("zero_shot", right(9), "b"),)),
    )
    first, second = (
        [path.read_bytes() for path in write_results(tmp_path / name, base, tuned, CONFIG)] for name in "ab"
    )
    assert first == second


def test_how_samples_are_drawn_is_in_the_key_of_evaluations_and_the_speed_of_answers_is_not():
    def other(**settings: Any) -> EvaluationConfig:
        return CONFIG.model_copy(update={"diversity": CONFIG.diversity.model_copy(update=settings)})

    keys = {fingerprint(c) for c in (CONFIG, other(seeds=(42,)), other(samples=4), other(temperature=1.0))}
    assert len(keys) == 4
    arm = evaluation("zero_shot", right(9), "b")
    slow = arm.model_copy(update={"tokens_per_second": 1.0})
    assert fingerprint(BaselineReport(arms=(arm,))) == fingerprint(BaselineReport(arms=(slow,)))
    assert fingerprint(arm) != fingerprint(evaluation("zero_shot", right(8), "b"))
