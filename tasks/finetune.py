"""Finetune: train an adapter on the training split and fold it into the base."""

import functools
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from core.artifacts import Checkpoint, PhaseResult, Splits, file_digest, path_digest, write_json, write_jsonl
from core.data.config import ChatTemplateName
from core.models.config import LoraConfig, ModelConfig
from core.models.frameworks import edits_libraries
from core.quantization.aware_limits import check_aware
from core.quantization.config import AwareType
from core.sinks import Fanout
from core.training.config import SaveConfig, TrainingConfig
from core.training.reports import EvalLoss, TrainReport
from tasks.chat_tokens import READS as CHAT
from tasks.chat_tokens import chat_tokenizer
from tasks.context import RunContext
from tasks.data_figures import track_reads
from tasks.phase import Outcome, phase

if TYPE_CHECKING:
    from peft import PeftModel

    from core.data.chat import ChatTokenizer
    from core.models.merging import MergeErrors
    from core.training.job import Job
    from core.training.rows import Rows, SftInputs
    from core.training.sft import Tuned
    from core.training.status import TrainingStatus


class Finetuned(PhaseResult[Checkpoint, TrainReport]):
    """The merged model and what training did."""


ENGINES = ("torch", "transformers", "tokenizers", "peft", "bitsandbytes", "accelerate")
READS = (
    "core.models.adapter_files",
    "core.models.adapters",
    "core.models.base_identity",
    "core.models.merging",
    "core.quantization.aware",
    "core.quantization.aware_limits",
    "core.quantization.grids",
    "core.sinks",
    "core.training.apart",
    "core.training.checkpoints",
    "core.training.handover",
    "core.training.head",
    "core.training.hints",
    "core.training.job",
    "core.training.language",
    "core.training.loop",
    "core.training.lora_analysis",
    "core.training.memory",
    "core.training.meter",
    "core.training.optim",
    "core.training.packing",
    "core.training.room",
    "core.training.rows",
    "core.training.sft",
    "core.training.status",
    "core.training.stopping",
    "core.training.worker",
    *CHAT,
)


PROCESS_LOG = "training-process.log"
"""What libraries print where training has a process of its own; in the folder of the training log."""
PROBE = 256
"""Tokens that logits are compared on before and after merging."""


class Prepared(NamedTuple):
    """Tokenized examples and what was cut."""

    inputs: "SftInputs"
    truncated: int
    chat: "ChatTokenizer"


def trained_by(base: Checkpoint, splits: Splits, model: ModelConfig, *others: Any) -> tuple[str, ...]:
    """Name the libraries that train, where they are optional ones."""
    return ("unsloth", "unsloth_zoo") if model.framework == "unsloth" else ()


@phase("finetune", Finetuned, reads=READS, engines=ENGINES, optional=trained_by)
def finetune(
    context: RunContext,
    key: str,
    base: Checkpoint,
    splits: Splits,
    model: ModelConfig,
    lora: LoraConfig,
    training: TrainingConfig,
    save: SaveConfig,
    template: ChatTemplateName,
    aware: AwareType | None,
) -> Outcome:
    """Train and merge; with ``aware`` every forward pass has that type's rounding, and so have the merged weights."""
    if aware:
        check_aware(aware, model, lora)
    base.verified(), splits.verified()
    root = context.workspace.root
    adapter, merged = root / save.lora_path, root / save.merged_path
    prepared = prepare(base.path, splits, model, template, context.workspace.tokens)
    track_reads(context, splits, "train", "val")
    tuned = train(context, key, base, prepared, model, lora, training, adapter, aware)
    context.watcher.advanced("finetune", tuned.plan.total_steps, tuned.plan.total_steps, "merging")
    folded = fold(base, adapter, merged, prepared, tuned.micro_batch, aware)
    report = make_report(base, splits, adapter, merged, prepared, tuned, folded)
    stats = write_stats(context, report, model)
    matrices = write_analysis(context, adapter, lora)
    write_curve(context.workspace.curve, tuned)
    outputs = (adapter, merged, stats, matrices, context.workspace.curve)
    return Outcome(Finetuned(artifact=Checkpoint.of(merged), report=report), outputs, told(report))


def prepare(
    base: Path, splits: Splits, model: ModelConfig, template: ChatTemplateName, cache: Path
) -> Prepared:
    """Tokenize train and val with the base's chat template, once; only assistant tokens carry loss."""
    from core.data.examples import encode_file
    from core.training.rows import SftInputs

    chat = chat_tokenizer(base, template)
    train = encode_file(splits.train, chat, model.max_seq_length, cache=cache)
    val = encode_file(splits.val, chat, model.max_seq_length, cache=cache)
    return Prepared(
        SftInputs(train.examples, val.examples, chat.pad_id, model.max_seq_length),
        train.shortened + train.dropped,
        chat,
    )


def train(
    context: RunContext,
    key: str,
    base: Checkpoint,
    prepared: Prepared,
    model: ModelConfig,
    lora: LoraConfig,
    training: TrainingConfig,
    adapter: Path,
    aware: AwareType | None = None,
) -> "Tuned":
    """Train or resume, save the adapter, and let go of the memory.

    An engine that edits the libraries it uses works in a process of its own; this one never imports it.
    """
    from core.training.checkpoints import discard_finished
    from core.training.job import Job
    from core.training.memory import free_memory
    from core.training.rows import Rows
    from core.training.sft import plan_steps
    from core.training.status import TrainingLog, TrainingStatus

    place = context.workspace
    rows = Rows(prepared.inputs, training)
    plan = plan_steps(len(rows), training)
    epochs = round(plan.total_steps / plan.steps_per_epoch, 3)
    status = TrainingStatus(place.status, total_steps=plan.total_steps, total_epochs=epochs)
    sink = Fanout(status, TrainingLog(place.training_log), WatcherSink(context, plan.total_steps))
    job = Job(
        model=model.model_copy(update={"name": str(base.path)}), lora=lora, training=training,
        checkpoints=place.root / training.output_dir, adapter=adapter, fingerprint=key,
    )  # fmt: skip
    with status:
        if context.must_rerun("finetune"):
            # Asked to train anew: a finished state is dropped, an unfinished one is a killed run's to resume.
            discard_finished(job.checkpoints, plan.total_steps)
        if edits_libraries(model.framework):
            tuned = _train_apart(job, prepared, status, sink, place.training_log.with_name(PROCESS_LOG))
        else:
            tuned = _train_here(job, prepared, status, sink, rows, aware)
    free_memory()
    return tuned


def _train_here(
    job: "Job",
    prepared: Prepared,
    status: "TrainingStatus",
    sink: Fanout,
    rows: "Rows",
    aware: AwareType | None,
) -> "Tuned":
    from core.training.sft import carry_out

    return carry_out(
        job,
        prepared.inputs,
        sink=sink,
        on_checkpoint=status.checkpointed,
        on_start=lambda progress: status.resumed(progress.step),
        rows=rows,
        ready=rounding(aware),
    )


def _train_apart(
    job: "Job", prepared: Prepared, status: "TrainingStatus", sink: Fanout, log: Path
) -> "Tuned":
    from core.training.apart import train_apart
    from core.training.memory import free_memory

    # What earlier phases computed with would be missing on the GPU there.
    free_memory()
    return train_apart(
        job, prepared.inputs, log=log, sink=sink,
        on_checkpoint=status.checkpointed, on_start=lambda progress: status.resumed(progress.step),
    )  # fmt: skip


def rounding(aware: AwareType | None) -> "Callable[[PeftModel], object] | None":
    """Return what lets an adapted model round its weights, before it is trained and before it is folded."""
    if aware is None:
        return None
    from core.quantization.aware import prepare

    return functools.partial(prepare, kind=aware)


class WatcherSink:
    """Passes training steps on to the tracker and to whoever watches."""

    def __init__(self, context: RunContext, total: int) -> None:
        """Remember the watcher and the number of steps."""
        self.context, self.total = context, total

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a step."""
        if self.context.phase_run:
            self.context.phase_run.log(step, metrics)
        self.context.watcher.measured("finetune", step, metrics)
        if "reliefs" in metrics:
            text = "memory ran out: less is kept for the backward pass from now on, the same mathematics"
            self.context.watcher.advanced("finetune", step, self.total, text)
        elif "micro_batch" in metrics and "shrinks" not in metrics:
            text = f"{metrics['micro_batch']:.0f} rows at a time, which is fastest in the memory there is"
            self.context.watcher.advanced("finetune", step, self.total, text)
        if "shrinks" in metrics:
            text = f"memory ran out: {metrics['micro_batch']:.0f} rows at a time from now on, the same mathematics"
            self.context.watcher.advanced("finetune", step, self.total, text)
        if "loss" in metrics:
            self.context.watcher.advanced("finetune", step, self.total, f"loss {metrics['loss']:.3f}")


class Merging(NamedTuple):
    """What folding the adapter in changed."""

    errors: "MergeErrors"
    eval_loss: float | None
    """Validation loss of the merged model; None without validation rows."""
    aware: AwareType | None
    """Type whose rounding its weights have."""


def fold(
    base: Checkpoint,
    adapter: Path,
    merged: Path,
    prepared: Prepared,
    rows: int,
    aware: AwareType | None = None,
) -> Merging:
    """Merge into the full-precision base, save as one folder, return what that changed.

    The validation loss is taken again: an adapter that was trained on a base in 4 bits is folded into another one.
    """
    import torch

    from core.artifacts import atomic_path
    from core.models.loading import load_folder
    from core.models.merging import fold as fold_adapter
    from core.training.sft import validation_loss

    model = load_folder(base.path)
    # Whole examples would take 16 bytes a token and vocabulary entry.
    probe = torch.tensor([prepared.inputs.train[0].input_ids[:PROBE]], device=model.device)
    folded, errors = fold_adapter(model, adapter, probe, rounding(aware))
    loss = validation_loss(folded, prepared.inputs, rows)
    chat = prepared.chat
    # What was trained is what must be served: this template, and an end at these tokens.
    chat.tokenizer.chat_template = chat.serving_template
    folded.generation_config.eos_token_id = sorted(chat.stop_ids)
    with atomic_path(merged) as part:
        folded.save_pretrained(part, safe_serialization=True)
        chat.tokenizer.save_pretrained(part)
    return Merging(errors, loss, aware)


def make_report(
    base: Checkpoint,
    splits: Splits,
    adapter: Path,
    merged: Path,
    prepared: Prepared,
    tuned: "Tuned",
    folded: Merging,
) -> TrainReport:
    """Put the numbers of training together."""
    losses = tuned.progress.losses
    window = max(1, len(losses) // 10)
    return TrainReport(
        base_digest=base.digest,
        train_digest=file_digest(splits.train),
        adapter_digest=path_digest(adapter),
        merged_digest=path_digest(merged),
        steps=tuned.progress.step,
        total_steps=tuned.plan.total_steps,
        epochs=tuned.progress.step / tuned.plan.steps_per_epoch,
        samples=len(prepared.inputs.train),
        truncated=prepared.truncated,
        tokens=tuned.progress.tokens,
        first_loss=sum(losses[:window]) / window,
        final_loss=sum(losses[-window:]) / window,
        window=window,
        eval_losses=tuple(EvalLoss(step=step, loss=loss) for step, loss in tuned.progress.eval_losses),
        trainable_parameters=tuned.trainable_parameters,
        parameters=tuned.parameters,
        merged_eval_loss=folded.eval_loss,
        merge_error=folded.errors.logits,
        unmerge_error=folded.errors.unmerge,
        kept_step=tuned.kept_step,
        stopped_early=tuned.progress.stopped_early,
        micro_batch=tuned.micro_batch,
        accumulation=tuned.accumulation,
        shrinks=tuned.progress.shrinks,
        peak_memory_bytes=tuned.peak_memory,
        tokens_per_second=round(tuned.tokens_per_second, 3),
        framework=tuned.framework,
        base_format=tuned.base_format,
        quantization_aware=folded.aware,
        seconds=round(tuned.seconds, 3),
        device=tuned.device,
        error=None,
    )


def write_stats(context: RunContext, report: TrainReport, model: ModelConfig) -> Path:
    """Write ``metrics/training-stats.json``."""
    stats: dict[str, Any] = {
        "model": model.name, "dataset_samples": report.samples, "final_loss": report.final_loss,
        "total_steps": report.total_steps, "epochs": report.epochs,
        "completed_at": datetime.now(UTC).isoformat(timespec="seconds"), **report.model_dump(mode="json"),
    }  # fmt: skip
    return write_json(context.workspace.training_stats, stats)


def write_analysis(context: RunContext, adapter: Path, lora: LoraConfig) -> Path:
    """Write ``metrics/lora.json``: what every layer of the adapter learned."""
    from core.training.lora_analysis import analyse_adapter

    scale = lora.lora_alpha / (math.sqrt(lora.r) if lora.use_rslora else lora.r)
    return write_json(context.workspace.metrics / "lora.json", analyse_adapter(adapter, scale))


def told(report: TrainReport) -> str:
    """Say in one line how training went."""
    line = f"loss {report.first_loss:.3f} to {report.final_loss:.3f} in {report.steps} steps"
    if report.stopped_early:
        line += f" of {report.total_steps}, stopped early"
    if report.kept_step != report.steps:
        line += f", kept step {report.kept_step}"
    if report.quantization_aware:
        line += f", rounding to {report.quantization_aware}"
    if report.shrinks:
        line += f", {report.micro_batch} rows at a time after memory ran out"
    return line


def write_curve(target: Path, tuned: "Tuned") -> None:
    """Write the loss of every step, and the validation losses among them."""
    evals = dict(tuned.progress.eval_losses)
    rows = (
        {"step": i, "loss": loss, "eval_loss": evals.get(i)}
        for i, loss in enumerate(tuned.progress.losses, 1)
    )
    write_jsonl(target, rows)
