"""Public benchmarks through lm-evaluation-harness, an extra."""

import glob
import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import yaml

from core.artifacts import fingerprint
from core.errors import ConfigError, DataError, FactoryError
from core.evaluation.config import TASK_FILES, HarnessConfig
from core.evaluation.reports import Suite
from core.evaluation.statistics import Interval, mean_interval

RESAMPLES = 1000
"""Of the harness's own bootstrap, for metrics that are no mean over questions."""


def check_harness(config: HarnessConfig, base: Path) -> None:
    """Say before any model is loaded whether the harness is there, and the task files are.

    Raises:
        ConfigError: If tasks are asked for and the extra is not installed, or a file does not exist.
    """
    if config.tasks and importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(
            "public benchmarks need lm-evaluation-harness, which is not installed",
            where="evaluation.harness.tasks",
            fix="pip install 'data-factory[harness]'",
        )
    for task in config.tasks:
        if task.endswith(TASK_FILES) and not (base / task).is_file():
            raise ConfigError(f"there is no task file {base / task}", where="evaluation.harness.tasks")


def task_files(config: HarnessConfig, base: Path) -> dict[str, list[Path]]:
    """List the files behind each task: none for one by name, else the YAML file and what it names that exists.

    Followed are the keys include, dataset_path, dataset_kwargs and every ``!function module.name``; paths count
    from the YAML file's folder and from the current one, where ``datasets`` looks.

    Args:
        config: Tasks.
        base: Folder that task files are relative to.
    """
    return {
        task: _named_by((base / task).resolve(), set()) if task.endswith(TASK_FILES) else []
        for task in config.tasks
    }


def _named_by(file: Path, seen: set[Path]) -> list[Path]:
    if file in seen or not file.exists():
        return []
    seen.add(file)
    if Path.cwd().is_relative_to(file):
        # A folder around everything: what this run writes is not the task's data.
        return [place for place in sorted(file.iterdir()) if place.is_file()]
    if not file.name.endswith(TASK_FILES):
        return [file]
    named = (place for text in _places(file) for place in _found(text, file.parent))
    return [file, *(each for place in named for each in _named_by(place, seen))]


def _found(text: str, folder: Path) -> list[Path]:
    roots = (folder, Path.cwd())
    return [(root / place).resolve() for root in roots for place in sorted(glob.glob(text, root_dir=root))]  # noqa: PTH207 - absolute globs


def _places(file: Path) -> list[str]:
    """Return the texts of a task file that may name other files; an unreadable one has none."""
    modules: list[str] = []

    class Loader(yaml.SafeLoader):
        """Reads tags of the harness as text; runs nothing."""

    def tagged(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> str:
        text = str(node.value)
        modules.append(text.rpartition(".")[0] + ".py")
        return text

    Loader.add_multi_constructor("!", tagged)
    try:
        settings = yaml.load(file.read_text(encoding="utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError):
        return []
    if not isinstance(settings, dict):
        return []
    chosen = [settings.get(key) for key in ("include", "dataset_path", "dataset_kwargs")]
    return [*modules, *_texts(chosen)]


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        each = value.values() if isinstance(value, dict) else value
        return [text for one in each for text in _texts(one)]
    return [value] if isinstance(value, str) and value else []


def run_harness(
    folder: Path,
    config: HarnessConfig,
    *,
    base: Path,
    device: str,
    batch_size: int,
    resamples: int,
    confidence: float,
    seed: int,
) -> tuple[Suite, ...]:
    """Run tasks of lm-evaluation-harness on a model folder.

    Nothing is fetched that is not needed: tasks whose data lies in local files, or in the cache of
    ``datasets``, run offline. Prompts are the tasks' own, without a chat template.

    Args:
        folder: Model folder, weights in safetensors.
        config: Task names or YAML files, shots, limit.
        base: Folder that task files are relative to.
        device: cpu, cuda, cuda:0.
        batch_size: Requests at once.
        resamples: Bootstrap resamples.
        confidence: Coverage of the intervals.
        seed: Decides resamples and shots.

    Returns:
        One suite for each task and metric, groups of tasks included.

    Raises:
        ConfigError: If the extra is not installed, or a task does not exist.
        DataError: If a task's data cannot be had, or it fails.
    """
    check_harness(config, base)
    if not config.tasks:
        return ()
    from core.evaluation.inference import own_randomness

    with own_randomness():
        results = _evaluated(folder, config, base, device, batch_size, seed)
    return tuple(
        _suite(results, task, key, resamples, confidence, seed)
        for task, numbers in results["results"].items()
        for key in numbers
        if _is_metric(key, numbers)
    )


def _evaluated(
    folder: Path, config: HarnessConfig, base: Path, device: str, batch_size: int, seed: int
) -> dict[str, Any]:
    import lm_eval
    from lm_eval.tasks import TaskManager

    tasks = [str((base / task).resolve()) if task.endswith(TASK_FILES) else task for task in config.tasks]
    # Reading the index of thousands of built-in tasks takes half a minute.
    manager = TaskManager(include_defaults=any(not task.endswith(TASK_FILES) for task in tasks))
    _known(manager, tasks)
    try:
        results: dict[str, Any] = lm_eval.simple_evaluate(
            model="hf",
            model_args={"pretrained": str(folder), "use_safetensors": True},
            tasks=tasks,
            task_manager=manager,
            num_fewshot=config.shots,
            limit=config.limit,
            batch_size=batch_size,
            device=device,
            bootstrap_iters=RESAMPLES,
            random_seed=seed,
            numpy_random_seed=seed % 2**32,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    except FactoryError:
        raise
    except Exception as error:  # Tasks, data sets and metrics raise what they like.
        raise DataError(
            f"a task failed: {type(error).__name__}: {str(error)[:300]}",
            where=f"evaluation.harness.tasks {', '.join(config.tasks)}",
            fix="run once with a network to fill the cache of datasets, or take the task out",
        ) from error
    return results


def _known(manager: Any, tasks: Sequence[str]) -> None:
    missing = [task for task in tasks if not task.endswith(TASK_FILES) and not manager.match_tasks([task])]
    if missing:
        raise ConfigError(
            f"lm-evaluation-harness has no task {missing[0]!r}",
            where="evaluation.harness.tasks",
            fix="list them with: lm-eval ls tasks",
        )


def _is_metric(key: str, numbers: dict[str, Any]) -> bool:
    value = numbers[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return "," in key and "_stderr," not in key and is_number


def _suite(
    results: dict[str, Any], task: str, key: str, resamples: int, confidence: float, seed: int
) -> Suite:
    metric, _, chosen = key.partition(",")
    numbers = results["results"][task]
    rows = [row for row in results.get("samples", {}).get(task, ()) if row.get("filter", chosen) == chosen]
    value, scores = float(numbers[key]), _scores(rows, metric)
    if scores and math.isclose(math.fsum(scores) / len(scores), value, rel_tol=1e-6, abs_tol=1e-9):
        ends = mean_interval(scores, resamples=resamples, confidence=confidence, seed=seed)
    else:
        scores, ends = (), _around(value, numbers.get(f"{metric}_stderr,{chosen}"), confidence)
    hashes = [row.get("doc_hash") for row in rows] or [results["group_subtasks"].get(task)]
    return Suite(
        name=task,
        metric=metric if chosen == "none" else key,
        value=value,
        low=ends.low,
        high=ends.high,
        n=len(rows) or int(numbers.get("sample_len", 0)),
        digest=fingerprint(task, results["versions"].get(task), hashes),
        scores=scores,
        higher_is_better=results.get("higher_is_better", {}).get(task, {}).get(metric) is not False,
    )


def _scores(rows: Sequence[dict[str, Any]], metric: str) -> tuple[float, ...]:
    """Return one number per question, or nothing if the metric has none."""
    values = [row.get(metric) for row in rows]
    plain = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return tuple(plain) if len(plain) == len(values) else ()


def _around(value: float, error: Any, confidence: float) -> Interval:
    """Return the normal interval of a value with a standard error; without one it has no width."""
    if not isinstance(error, int | float) or not math.isfinite(error):
        return Interval(value, value, value)
    half = NormalDist().inv_cdf(0.5 + confidence / 2) * float(error)
    return Interval(value, value - half, value + half)
