"""What baseline and evaluate share: ask a PyTorch model the test questions, and what else is asked of it."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.artifacts import Splits, path_digest, write_jsonl
from core.data.config import ChatTemplateName
from core.errors import ModelError
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

READS = ("core.evaluation", "tasks.measure", "tasks.scores", *CHAT)
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

    They belong to a phase's inputs, so that editing a grader or a module beside it measures anew, and moving
    them does not. A path that leads nowhere is there as it is written; the phase says what is wrong with it.

    Raises:
        ModelError: If the encoder is to come from the Hub and does not.
    """
    from core.evaluation.general import SHIPPED

    base, found = current().base, {}
    for name, grader in config.graders.items():
        file, _, function = (grader.path or "").rpartition(":")
        if file:
            found[f"graders.{name}:{function}"] = _grader(base / file, file)
    if config.general.enabled:
        path = config.general.path or str(SHIPPED)
        found["general"] = _digest(base / path, path)
    if needs_encoder(config) and (model := config.encoder.model):
        found["encoder"] = _digest(_encoder_folder(model, base), model)
    return found | _tasks_of(config.harness, base)


def _digest(path: Path, written: str) -> str:
    return path_digest(path) if path.exists() else written


def _grader(file: Path, written: str) -> str:
    from core.evaluation.grader_files import grader_digest

    return grader_digest(file) if file.is_file() else written


def _encoder_folder(model: str, base: Path) -> Path:
    """Return the folder of an encoder: as named, or the Hub's snapshot of the main branch as it is now."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    folder = base / model
    try:
        validate_repo_id(model)
    except HFValidationError:
        return folder
    return folder if folder.exists() else _encoder_snapshot(model)


def _encoder_snapshot(model: str) -> Path:
    from core.models.loading import local_snapshot

    try:
        return local_snapshot(model)
    except ModelError as error:
        raise ModelError(
            f"the encoder {model}: {error.what}", where="evaluation.encoder.model", fix=error.fix
        ) from error


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
    """Add several sampled answers, if they are wanted: of every way of asking, for they are compared."""
    if not one.config.diversity.samples:
        return graded
    return _with(graded, diversity=_diversity(context, one, graded.report.arm, ask))


def ask_everyday(context: RunContext, one: Examinee, graded: Graded) -> Graded:
    """Add everyday knowledge, if it is wanted; what is known does not depend on the way of asking."""
    return _with(graded, suites=(_everyday(context, one),)) if one.config.general.enabled else graded


def _with(graded: Graded, **extras: Any) -> Graded:
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


def _diversity(context: RunContext, one: Examinee, arm: str, ask: "Ask") -> Any:
    from core.evaluation.diversity import sampled_diversity
    from core.evaluation.metrics import answer_grader
    from core.evaluation.questions import read_questions

    config = one.config
    return sampled_diversity(
        one.model,
        read_questions(one.splits.test, config.max_examples),
        answer_grader(config, context.base),
        config,
        ask=ask,
        encoder=_encoder(config),
        tick=_tick(context, one.phase, f"questions sampled, {arm}"),
    )


def _encoder(config: EvaluationConfig) -> Any:
    from core.evaluation.similarity import load_encoder

    return load_encoder(config.encoder.model, config.encoder.device) if config.encoder.model else None
