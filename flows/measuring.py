"""What evaluation and its gate ask of each other, and of the machine."""

from collections.abc import Callable, Iterator

from core.evaluation.config import TASK_FILES, EvaluationConfig
from flows.run_outputs import Problem
from gates.thresholds import ModelPerformance


def measuring_problems(evaluation: EvaluationConfig, gate: ModelPerformance) -> Iterator[Problem]:
    """Find metrics that cannot be computed, and demands on what nobody measures."""
    yield from _metric_problems(evaluation)
    arms = evaluation.baseline.arms
    if gate.compare_to != "best" and gate.compare_to not in arms:
        yield Problem(
            ("gates.model_performance.compare_to", "evaluation.baseline.arms"),
            f"{gate.compare_to} is not in evaluation.baseline.arms ({', '.join(arms)})",
        )
    for name in gate.require:
        if name not in evaluation.metrics:
            yield Problem(
                (f"gates.model_performance.require.{name}", "evaluation.metrics"),
                f"{name} is not in evaluation.metrics ({', '.join(evaluation.metrics)})",
            )


def _metric_problems(evaluation: EvaluationConfig) -> Iterator[Problem]:
    metrics = evaluation.metrics
    if evaluation.primary_metric not in metrics:
        yield Problem(
            ("evaluation.primary_metric", "evaluation.metrics"),
            f"{evaluation.primary_metric} is not in evaluation.metrics ({', '.join(metrics)})",
        )
    if "judge" in metrics and evaluation.judge.url is None:
        yield Problem(
            ("evaluation.judge.url", "evaluation.metrics"),
            "the metric judge needs the base address of an endpoint, such as http://127.0.0.1:8080/v1",
        )
    if "similarity" in metrics and evaluation.encoder.model is None:
        yield Problem(
            ("evaluation.encoder.model", "evaluation.metrics"),
            "the metric similarity needs an encoder, such as sentence-transformers/all-MiniLM-L6-v2",
        )


def judge_variable(evaluation: EvaluationConfig) -> str | None:
    """Return the name of the environment variable that must hold the judge's key, if one is needed."""
    return evaluation.judge.key_variable if "judge" in evaluation.metrics else None


def with_paths(evaluation: EvaluationConfig, anchor: Callable[[str], str]) -> EvaluationConfig:
    """Return the block with every path in it put through ``anchor``: graders, questions, encoder, tasks."""

    def anchored(path: str | None) -> str | None:
        file, colon, function = (path or "").rpartition(":")
        return f"{anchor(file)}{colon}{function}" if file else path

    graders = {
        name: grader.model_copy(update={"path": anchored(grader.path)})
        for name, grader in evaluation.graders.items()
    }
    general, encoder, harness = evaluation.general, evaluation.encoder, evaluation.harness
    tasks = tuple(anchor(task) if task.endswith(TASK_FILES) else task for task in harness.tasks)
    return evaluation.model_copy(
        update={
            "graders": graders,
            "general": general.model_copy(update={"path": general.path and anchor(general.path)}),
            "harness": harness.model_copy(update={"tasks": tasks}),
            "encoder": encoder.model_copy(update={"model": encoder.model and anchor(encoder.model)}),
        }
    )
