"""Public benchmarks: absent with one message, and a local task run offline where the extra is installed."""

import importlib.util
import json
from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from core.evaluation.config import HarnessConfig
from core.evaluation.general import SHIPPED
from core.evaluation.harness import _around, _suite, check_harness, run_harness, task_files

INSTALLED = importlib.util.find_spec("lm_eval") is not None
HOW = {"device": "cpu", "batch_size": 8, "resamples": 1000, "confidence": 0.95, "seed": 3407}
TASK = """
task: everyday
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


def test_without_tasks_nothing_is_needed(tmp_path: Path):
    assert run_harness(tmp_path, HarnessConfig(), base=tmp_path, **HOW) == ()


@pytest.mark.skipif(INSTALLED, reason="the extra is installed")
def test_without_the_extra_the_message_says_how_to_install_it(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"pip install 'data-factory\[harness\]'"):
        run_harness(tmp_path, HarnessConfig(tasks=("arc_easy",)), base=tmp_path, **HOW)


@pytest.mark.skipif(not INSTALLED, reason="needs the extra harness")
def test_a_missing_task_file_is_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"no\.yaml"):
        check_harness(HarnessConfig(tasks=("no.yaml",)), tmp_path)


@pytest.mark.skipif(not INSTALLED, reason="needs the extra harness")
def test_a_local_task_runs_offline_and_keeps_every_score(base_folder: Path, tmp_path: Path):
    rows = SHIPPED.read_text().splitlines()[:12]
    (tmp_path / "q.jsonl").write_text("\n".join(rows))
    (tmp_path / "everyday.yaml").write_text(TASK.format(file=tmp_path / "q.jsonl"))
    config = HarnessConfig(tasks=("everyday.yaml",), limit=10, shots=0)
    suites = {suite.metric: suite for suite in run_harness(base_folder, config, base=tmp_path, **HOW)}
    assert set(suites) == {"acc", "acc_norm"}
    suite = suites["acc"]
    assert (suite.name, suite.n, len(suite.scores)) == ("everyday", 10, 10)
    assert suite.value == pytest.approx(sum(suite.scores) / 10)
    assert suite.low <= suite.value <= suite.high
    assert set(suite.scores) <= {0.0, 1.0}


@pytest.mark.skipif(not INSTALLED, reason="needs the extra harness")
def test_a_task_that_fails_raises(base_folder: Path, tmp_path: Path):
    (tmp_path / "q.jsonl").write_text(json.dumps({"question": "x"}))
    (tmp_path / "everyday.yaml").write_text(TASK.format(file=tmp_path / "q.jsonl"))
    with pytest.raises(DataError, match="a task failed"):
        run_harness(base_folder, HarnessConfig(tasks=("everyday.yaml",)), base=tmp_path, **HOW)


def results(**changes):
    rows = [{"acc": float(i % 2), "filter": "none", "doc_hash": str(i)} for i in range(8)]
    numbers = {"acc,none": 0.5, "acc_stderr,none": 0.1, "f1,none": 0.3, "f1_stderr,none": 0.02}
    return {
        "results": {"t": numbers},
        "samples": {"t": rows},
        "versions": {"t": 1},
        "group_subtasks": {},
    } | changes


def test_a_mean_gets_a_bootstrap_interval_and_keeps_its_scores():
    suite = _suite(results(), "t", "acc,none", 1000, 0.95, 1)
    assert suite.scores == (0.0, 1.0) * 4
    assert suite.low < 0.5 < suite.high


def test_what_is_no_mean_over_questions_gets_the_harness_error_and_no_scores():
    suite = _suite(results(), "t", "f1,none", 1000, 0.95, 1)
    assert suite.scores == ()
    assert (suite.low, suite.high) == pytest.approx((0.3 - 1.959964 * 0.02, 0.3 + 1.959964 * 0.02))
    assert _around(0.3, "N/A", 0.95) == (0.3, 0.3, 0.3)


def test_filters_of_one_metric_are_told_apart():
    rows = [
        {"exact_match": float(i > 2), "filter": name, "doc_hash": str(i)} for i in range(4) for name in "ab"
    ]
    numbers = {"exact_match,a": 0.25, "exact_match,b": 0.25}
    suite = _suite(results(samples={"t": rows}, results={"t": numbers}), "t", "exact_match,a", 1000, 0.95, 1)
    assert (suite.metric, suite.n) == ("exact_match,a", 4)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"higher_is_better": {"t": {"acc": False, "f1": True}}}, False),
        ({"higher_is_better": {"t": {"acc": True, "f1": False}}}, True),
        ({"higher_is_better": {"t": {"acc": None}}}, True),
        ({"higher_is_better": {"other": {"acc": False}}}, True),
        ({}, True),
    ],
)
def test_the_direction_is_the_one_the_harness_tells(told, expected):
    assert _suite(results(**told), "t", "acc,none", 1000, 0.95, 1).higher_is_better is expected


def test_the_files_behind_a_task_are_found_without_running_it(tmp_path: Path, monkeypatch):
    tasks, elsewhere = tmp_path / "tasks", tmp_path / "elsewhere"
    tasks.mkdir(), elsewhere.mkdir(), (tasks / "folder").mkdir()
    monkeypatch.chdir(elsewhere)
    for place in (tasks / "a.jsonl", tasks / "b.jsonl", elsewhere / "c.jsonl", tasks / "other.jsonl"):
        place.write_text("{}")
    (tasks / "utils.py").write_text("raise SystemExit")
    (tasks / "common.yaml").write_text("include: t.yaml\nprocess_docs: !function utils.rows\n")
    (tasks / "t.yaml").write_text(
        "include: common.yaml\ndataset_path: json\ndataset_kwargs:\n"
        f"  data_files: {{test: '[ab].jsonl', validation: [c.jsonl, '{elsewhere}/c.jsonl', none.jsonl]}}\n"
        "  data_dir: folder\ndoc_to_text: other.jsonl\n"
    )
    found = task_files(HarnessConfig(tasks=("tasks/t.yaml", "arc_easy", "no.yaml")), tmp_path)
    assert {place.name for place in found["tasks/t.yaml"]} == {
        "t.yaml", "common.yaml", "utils.py", "a.jsonl", "b.jsonl", "c.jsonl", "folder",
    }  # fmt: skip
    assert (found["arc_easy"], found["no.yaml"]) == ([], [])


@pytest.mark.parametrize("text", ["{", "- 1", "", "a: !unknown {b: 1}"])
def test_a_task_file_that_cannot_be_read_is_at_least_itself(tmp_path: Path, text: str):
    (tmp_path / "t.yaml").write_text(text)
    assert task_files(HarnessConfig(tasks=("t.yaml",)), tmp_path)["t.yaml"] == [tmp_path / "t.yaml"]


def test_a_folder_around_everything_gives_its_own_files_only(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "workspace").mkdir()
    (tmp_path / "workspace" / "log").write_text("1")
    (tmp_path / "t.yaml").write_text("dataset_kwargs: {data_dir: .}")
    assert {p.name for p in task_files(HarnessConfig(tasks=("t.yaml",)), tmp_path)["t.yaml"]} == {"t.yaml"}
