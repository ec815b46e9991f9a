"""What evaluation and its gate ask of each other, and of the machine."""

from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError
from flows.config_file import load_config
from flows.measuring import judge_variable
from flows.preflight import preflight
from flows.run_config import RunConfig, check
from flows.settings import read_secret

LEAST = {"model": {"name": "m"}, "sources": [{"path": "d.jsonl"}]}
URL = "http://127.0.0.1:8080/v1"


def problems(**blocks: Any) -> list[str]:
    found = check({**LEAST, **blocks})
    return [] if isinstance(found, RunConfig) else [problem.keys[0] for problem in found]


@pytest.mark.parametrize(
    ("evaluation", "key"),
    [
        ({"primary_metric": "chrf"}, "evaluation.primary_metric"),
        ({"metrics": ["exact_match", "judge"]}, "evaluation.judge.url"),
        ({"metrics": ["exact_match", "similarity"]}, "evaluation.encoder.model"),
        ({"metrics": ["exact_match", "judge"], "judge": {"url": URL}}, None),
        ({"metrics": ["exact_match", "similarity"], "encoder": {"model": "owner/encoder"}}, None),
        ({"judge": {"key_variable": "KEY"}}, None),
    ],
)
def test_a_metric_needs_what_computes_it(evaluation: dict[str, Any], key: str | None) -> None:
    assert problems(evaluation=evaluation) == ([key] if key else [])


@pytest.mark.parametrize(
    ("arms", "compare_to", "is_fine"),
    [
        (["zero_shot"], "best", True),
        (["zero_shot"], "zero_shot", True),
        (["zero_shot"], "prompted", False),
        (["zero_shot", "prompted"], "prompted", True),
    ],
)
def test_the_arm_to_beat_must_be_asked(arms: list[str], compare_to: str, is_fine: bool) -> None:
    found = problems(
        evaluation={"baseline": {"arms": arms}}, gates={"model_performance": {"compare_to": compare_to}}
    )
    assert found == ([] if is_fine else ["gates.model_performance.compare_to"])


def test_a_demand_on_a_metric_that_nobody_computes_is_a_contradiction() -> None:
    gates = {"model_performance": {"require": {"perplexity": {"max_ratio": 0.85}}}}
    assert problems(gates=gates) == ["gates.model_performance.require.perplexity"]
    assert problems(gates=gates, evaluation={"metrics": ["exact_match", "perplexity"]}) == []


def test_a_key_is_wanted_only_by_a_judge_that_is_asked() -> None:
    run = RunConfig.model_validate(LEAST)
    judged = run.evaluation.model_copy(
        update={"judge": run.evaluation.judge.model_copy(update={"key_variable": "KEY"})}
    )
    assert judge_variable(judged) is None
    assert judge_variable(judged.model_copy(update={"metrics": ("exact_match", "judge")})) == "KEY"


def test_a_secret_is_read_and_never_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", " sk-secret ")
    found = read_secret("MY_KEY", "evaluation.judge.key_variable")
    assert found.get_secret_value() == "sk-secret"
    assert "sk-secret" not in f"{found!r} {found}"


@pytest.mark.parametrize("value", [None, "", "  "])
def test_a_missing_secret_is_one_message_with_the_way_on(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(ConfigError, match="MY_KEY is not set"):
        read_secret("MY_KEY", "evaluation.judge.key_variable")


def config(folder: Path, evaluation: str) -> Path:
    (folder / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    path = folder / "run.yaml"
    path.write_text(f"model: {{name: m}}\nsources: [{{path: rows.jsonl}}]\nevaluation: {evaluation}\n")
    return path


def test_preflight_misses_the_judges_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    path = config(
        tmp_path, f"{{metrics: [exact_match, judge], judge: {{url: '{URL}', key_variable: MY_KEY}}}}"
    )
    run = load_config(path)
    told = [f.where for f in preflight(run, path, tmp_path / "ws").for_any_machine().errors]
    assert "evaluation.judge.key_variable" in told
    monkeypatch.setenv("MY_KEY", "k")
    assert "evaluation.judge.key_variable" not in [
        f.where for f in preflight(run, path, tmp_path / "ws").errors
    ]


def test_preflight_loads_graders_and_finds_them_beside_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir(), elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (project / "mine.py").write_text("def grade(answer, reference, metadata):\n    return 1.0\n")
    graders = "{metrics: [exact_match, mine], graders: {mine: {type: callable, path: 'mine.py:NAME'}}}"
    path = config(project, graders.replace("NAME", "grade"))
    run = load_config(path)
    assert run.evaluation.graders["mine"].path == f"{project / 'mine.py'}:grade"
    assert "evaluation.graders.mine.path" not in [
        f.where for f in preflight(run, path, tmp_path / "ws").errors
    ]
    path = config(project, graders.replace("NAME", "missing"))
    told = [f.where for f in preflight(load_config(path), path, tmp_path / "ws").errors]
    assert "evaluation.graders.mine.path" in told


@pytest.mark.parametrize(
    "url", ["https://bob:hunter2@host/v1", "https://host/v1?key=hunter2", "http://x/?token=hunter2"]
)
def test_a_secret_in_the_judges_address_is_refused_and_not_repeated(url: str, tmp_path: Path) -> None:
    found = check({**LEAST, "evaluation": {"judge": {"url": url}}})
    assert not isinstance(found, RunConfig)
    assert [problem.keys[0] for problem in found] == ["evaluation.judge.url"]
    with pytest.raises(ConfigError, match="holds a password") as caught:
        load_config(config(tmp_path, f"{{judge: {{url: '{url}'}}}}"))
    assert "hunter2" not in f"{found}{caught.value}"


def test_task_files_are_found_beside_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    project.mkdir(), elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (project / "t.yaml").write_text("task: t\n")
    (project / "arc_easy").write_text("")
    run = load_config(config(project, "{harness: {tasks: [t.yaml, arc_easy]}}"))
    assert run.evaluation.harness.tasks == (str(project / "t.yaml"), "arc_easy")
