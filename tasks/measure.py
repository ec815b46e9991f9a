"""What baseline and evaluate share: ask a PyTorch model the test questions, and what else is asked of it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.artifacts import Splits, path_digest, write_jsonl
from core.data.config import ChatTemplateName
from core.evaluation.config import EvaluationConfig, HarnessConfig
from core.evaluation.reports import EvalReport, Suite
from tasks.chat_tokens import READS as CHAT
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext, current
from tasks.phase import library_version
from tasks.uses import use_test_set

if TYPE_CHECKING:
    from core.evaluation.evaluate import Ask
    from core.evaluation.generation import TorchResponder
    from core.evaluation.metrics import Tools

READS = ("core.evaluation", "core.models", "tasks.measure", "tasks.scores", *CHAT)
ENGINES = ("torch", "transformers", "tokenizers", "sacrebleu", "rapidfuzz", "scipy")

Files = dict[str, str]
"""Digest or name of everything outside the config that decides a score, by the key that names it."""


class Examinee(NamedTuple):
    """A loaded model, and what its answers depend on."""

    phase: str
    model: "TorchResponder"
    digest: str
    splits: Splits
    config: EvaluationConfig


class Graded(NamedTuple):
    """A report, and one row per example for people to read."""

    report: EvalReport
    rows: list[dict[str, Any]]

    @property
    def note(self) -> str:
        """The primary metric in a few words."""
        value = self.report.metrics[self.report.metric]
        return f"{self.report.metric} {value.value:.3f} [{value.low:.3f}, {value.high:.3f}], n={value.n}"


def files_of(config: EvaluationConfig) -> Files:
    """Digest the files that settings point to: graders, everyday questions, an encoder's folder, task files.

    They belong to a phase's inputs, so that editing a grader measures anew, and moving it does not. What lies
    elsewhere, such as an encoder of the Hub, is there by its name.
    """
    from core.evaluation.general import SHIPPED

    base, named = current().base, {}
    for name, grader in config.graders.items():
        file, _, function = (grader.path or "").rpartition(":")
        named[f"graders.{name}:{function}"] = file
    if config.general.enabled:
        named["general"] = config.general.path or str(SHIPPED)
    if needs_encoder(config):
        named["encoder"] = config.encoder.model or ""
    found = {key: base / path for key, path in named.items() if path}
    digests = {key: path_digest(path) if path.exists() else named[key] for key, path in sorted(found.items())}
    return digests | _tasks_of(config.harness, base)


def needs_encoder(config: EvaluationConfig) -> bool:
    """Tell whether the encoder decides a number: a similarity, or how far sampled answers are apart."""
    from core.evaluation.metrics import SIMILARITY, wanted

    return SIMILARITY in wanted(config) or bool(config.diversity.samples and config.encoder.model)


def _tasks_of(config: HarnessConfig, base: Path) -> Files:
    """Name benchmarks by the version of their library, and task files by their contents."""
    from core.evaluation.harness import task_files

    found = {"lm_eval": library_version("lm_eval")} if config.tasks else {}
    for number, (task, files) in enumerate(task_files(config, base).items()):
        digests = " ".join(path_digest(file) for file in files)
        found[f"harness.{number}.{Path(task).name}"] = digests
    return found


def examinee(
    phase: str,
    folder: Path,
    digest: str,
    splits: Splits,
    config: EvaluationConfig,
    template: ChatTemplateName,
) -> Examinee:
    """Load a model folder once for everything that it will be asked."""
    from core.evaluation.generation import TorchResponder
    from core.evaluation.harness import check_harness
    from core.evaluation.metrics import check_metrics
    from core.models.loading import load_folder

    check_metrics(config, current().base)
    check_harness(config.harness, current().base)
    model = TorchResponder(load_folder(folder), chat_tokenizer(folder, template), config.batch_size)
    return Examinee(phase, model, digest, splits, config)


def ask_test_set(context: RunContext, one: Examinee, arm: str, ask: "Ask") -> Graded:
    """Ask every test question in one way, and grade the answers."""
    from core.evaluation.evaluate import evaluate

    result = evaluate(
        one.model,
        one.splits.test,
        one.config,
        arm=arm,
        model_digest=one.digest,
        clock=time.monotonic,
        tick=_tick(context, one.phase, f"questions, {arm}"),
        ask=ask,
        tools=tools_for(context, one.phase, arm),
    )
    use_test_set(result.report.split_digest, one.phase, arm)
    return Graded(result.report, result.rows)


def ask_more(context: RunContext, one: Examinee, graded: Graded, ask: "Ask") -> Graded:
    """Add what is asked beside the test set: everyday knowledge, and several sampled answers."""
    extras: dict[str, Any] = {}
    if one.config.general.enabled:
        extras["suites"] = (_everyday(context, one),)
    if one.config.diversity.samples:
        extras["diversity"] = _diversity(context, one, ask)
    return graded._replace(report=graded.report.model_copy(update=extras))


def benchmarks(context: RunContext, phase: str, folder: Path, config: EvaluationConfig) -> tuple[Suite, ...]:
    """Run public benchmarks; their library loads the model itself, so nothing else may hold it meanwhile."""
    from core.evaluation.harness import run_harness

    if not config.harness.tasks:
        return ()
    device = _let_go()
    context.watcher.advanced(phase, 0, len(config.harness.tasks), "benchmarks")
    return run_harness(
        folder,
        config.harness,
        base=context.base,
        device=device,
        batch_size=config.batch_size,
        resamples=config.resamples,
        confidence=config.confidence,
        seed=config.seed,
    )


def with_suites(report: EvalReport, suites: tuple[Suite, ...]) -> EvalReport:
    """Add suites to a report."""
    return report.model_copy(update={"suites": (*report.suites, *suites)})


def write_answers(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Keep what a model answered, with its scores in every metric."""
    write_jsonl(path, rows)
    return path


def tools_for(context: RunContext, phase: str, arm: str) -> "Tools":
    """Return what some metrics need beside the answers: the config's folder, the judge's key, a place for verdicts."""
    from core.evaluation.metrics import Tools

    key = context.judge_key
    return Tools(
        base=context.base,
        judge_key=key.get_secret_value() if key else None,
        verdicts=context.workspace.private / "verdicts.jsonl",
        tick=_tick(context, phase, f"references read, {arm}"),
    )


def _tick(context: RunContext, phase: str, what: str) -> Callable[[int, int], None]:
    return lambda done, total: context.watcher.advanced(phase, done, total, what)


def _let_go() -> str:
    """Free the memory of models that nobody holds any more, and name the device for the next one."""
    import gc

    import torch

    gc.collect()
    if not torch.cuda.is_available():
        return "cpu"
    torch.cuda.empty_cache()
    return "cuda"


def _everyday(context: RunContext, one: Examinee) -> Suite:
    from core.evaluation.general import general, read_choices

    config = one.config
    path = context.base / config.general.path if config.general.path else None
    return general(
        one.model,
        read_choices(path),
        resamples=config.resamples,
        confidence=config.confidence,
        seed=config.seed,
        tick=_tick(context, one.phase, "everyday answers weighed"),
    )


def _diversity(context: RunContext, one: Examinee, ask: "Ask") -> Any:
    from core.evaluation.diversity import sampled_diversity
    from core.evaluation.metrics import right_answer
    from core.evaluation.questions import read_questions

    config = one.config
    return sampled_diversity(
        one.model,
        read_questions(one.splits.test, config.max_examples),
        right_answer(config, context.base),
        config,
        ask=ask,
        encoder=_encoder(config),
        tick=_tick(context, one.phase, "questions sampled"),
    )


def _encoder(config: EvaluationConfig) -> Any:
    from core.evaluation.similarity import load_encoder

    return load_encoder(config.encoder.model, config.encoder.device) if config.encoder.model else None
