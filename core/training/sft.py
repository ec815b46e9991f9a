"""Supervised fine-tuning of an adapter on conversations."""

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from core.artifacts import atomic_path, write_json
from core.data.batches import collate, step_batches
from core.errors import ConfigError
from core.models.adapters import attach
from core.models.base_identity import write_identity
from core.models.engines import framework_of
from core.models.loading import load_model
from core.models.quantized import base_format, count_weights
from core.sinks import MetricSink
from core.training.checkpoints import TrainingCheckpoints
from core.training.config import TrainingConfig
from core.training.job import Job
from core.training.language import LanguageStep, autocast, mean_loss
from core.training.loop import Plan, Progress, StepLoss, Validation, train
from core.training.memory import explained
from core.training.meter import Spent, peak_memory, start_peak
from core.training.optim import build_optimizer, build_scheduler
from core.training.room import make_room
from core.training.rows import Rows, SftInputs, require_packable
from core.training.stopping import best_step


class Tuned(NamedTuple):
    """What fine-tuning did."""

    progress: Progress
    plan: Plan
    seconds: float
    """Wall-clock seconds, those of interrupted parts included."""
    trainable_parameters: int
    parameters: int
    device: str
    kept_step: int
    """Step whose tensors the model holds now."""
    micro_batch: int
    accumulation: int
    tokens_per_second: float
    """Tokens read, padding left out, over the seconds of training alone."""
    peak_memory: int
    """Bytes."""
    framework: str
    """Engine that trained."""
    base_format: str
    """How the base was held."""


def plan_steps(n_rows: int, config: TrainingConfig) -> Plan:
    """Turn sizes and settings into counts of optimizer steps; ``max_steps`` wins over epochs.

    Args:
        n_rows: Rows of an epoch: ``len(Rows(...))``, which is the number of examples unless they are packed.
        config: The training block.
    """
    per_step = config.per_device_train_batch_size * config.gradient_accumulation_steps
    per_epoch = math.ceil(n_rows / per_step)
    total = config.max_steps or max(1, round(config.num_train_epochs * per_epoch))
    return Plan(
        total,
        per_epoch,
        config.logging_steps,
        config.eval_steps,
        config.save_steps,
        config.max_grad_norm,
        config.seed,
        config.early_stopping_patience,
        config.early_stopping_threshold,
    )


def finetune(
    model: PeftModel,
    inputs: SftInputs,
    config: TrainingConfig,
    *,
    checkpoints: Path,
    fingerprint: str,
    sink: MetricSink,
    on_checkpoint: Callable[[], None],
    on_start: Callable[[Progress], None],
    rows: Rows | None = None,
) -> Tuned:
    """Train the adapter, resuming from the newest checkpoint of the same fingerprint.

    Afterwards the model holds the tensors of the lowest validation loss, or the last ones if
    ``load_best_model_at_end`` is false or there is no validation split.

    Args:
        model: Base with an adapter attached.
        inputs: Tokenized training and validation examples.
        config: The training block.
        checkpoints: Folder of resumable states.
        fingerprint: Identity of settings, data and code; another one starts afresh.
        sink: Receives the metrics of every step.
        on_checkpoint: Called after each saved state.
        on_start: Called once with the progress training continues from.
        rows: ``Rows(inputs, config)``, if it was made before.

    Raises:
        ConfigError: If the settings do not go with the model or the data.
        TrainingFailed: If the loss stops being finite.
        ResourceError: If memory runs out with one row at a time.
    """
    _require_possible(model, inputs, config)
    with explained():
        tuning = _Tuning(model, rows or Rows(inputs, config), config, checkpoints, fingerprint, on_checkpoint)
        return tuning.run(sink, on_start)


def carry_out(
    job: Job,
    inputs: SftInputs,
    *,
    sink: MetricSink,
    on_checkpoint: Callable[[], None],
    on_start: Callable[[Progress], None],
    rows: Rows | None = None,
    ready: Callable[[PeftModel], object] | None = None,
) -> Tuned:
    """Load the base, put an adapter on it, train it and save it; see ``finetune``.

    Args:
        job: What is to be trained, and where it goes.
        inputs: Tokenized training and validation examples.
        sink: Receives the metrics of every step.
        on_checkpoint: Called after each saved state.
        on_start: Called once with the progress training continues from.
        rows: ``Rows(inputs, job.training)``, if it was made before.
        ready: What is done to the adapted model first, such as letting it round its weights.
    """
    adapted = attach(load_model(job.model, trainable=True), job.lora)
    if ready:
        ready(adapted)
    tuned = finetune(
        adapted,
        inputs,
        job.training,
        checkpoints=job.checkpoints,
        fingerprint=job.fingerprint,
        sink=sink,
        on_checkpoint=on_checkpoint,
        on_start=on_start,
        rows=rows,
    )
    save_adapter(adapted, job.adapter)
    return tuned


def _require_possible(model: PeftModel, inputs: SftInputs, config: TrainingConfig) -> None:
    if config.early_stopping_patience is not None and not inputs.val:
        raise ConfigError(
            "there are no validation rows to stop early by",
            where="training.early_stopping_patience",
            fix="give split.val a share, or leave early_stopping_patience null",
        )
    if config.packing:
        require_packable(model, inputs.window)


class _Tuning:
    """A model, its rows, and all that training on them takes."""

    def __init__(
        self,
        model: PeftModel,
        rows: Rows,
        config: TrainingConfig,
        checkpoints: Path,
        fingerprint: str,
        on_checkpoint: Callable[[], None],
    ) -> None:
        self.model, self.rows, self.config, self.tell = model, rows, config, on_checkpoint
        self.plan = plan_steps(len(rows), config)
        self.device = next(model.parameters()).device
        start_peak(self.device)
        dtype = autocast_dtype(config, model)
        self.cast = autocast(self.device, dtype)
        self.scaler = torch.amp.GradScaler(self.device.type) if dtype == torch.float16 else None
        self.optimizer = build_optimizer(model.parameters(), config)
        self.scheduler = build_scheduler(self.optimizer, config, self.plan.total_steps)
        trainable: dict[str, Tensor] = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.keeper = TrainingCheckpoints(
            checkpoints, fingerprint, trainable, self.optimizer, self.scheduler, self.scaler
        )

    def run(self, sink: MetricSink, on_start: Callable[[Progress], None]) -> Tuned:
        """Restore, train, and put the best tensors into the model."""
        start, spent = self.keeper.restore()
        on_start(start)
        self.micro = make_room(self.model, self.config, self.rows, start.shrinks)
        if self.micro.size != self.config.per_device_train_batch_size and not start.shrinks:
            sink.log(start.step, self.micro.figures)
        self.spent, began = spent, time.monotonic()
        self.step = LanguageStep(self.model, self.device, self.cast, self.scaler)
        progress = train(
            self._step,
            self._items(start.step),
            self.optimizer,
            self.scheduler,
            self.plan,
            start=start,
            sink=sink,
            checkpointer=self,
            validation=self._validation(),
            scaler=self.scaler,
            micro=self.micro,
            spent=spent,
        )
        return self._tuned(progress, spent.total + time.monotonic() - began)

    def save(self, progress: Progress, spent: Spent) -> None:
        """Save, then tell."""
        self.keeper.save(progress, spent)
        self.spent = spent
        self.tell()

    def _items(self, start: int) -> Iterator[Sequence[int]]:
        """Yield the rows of every optimizer step; how they are cut into micro-batches does not matter here."""
        for (rows,) in step_batches(len(self.rows), self.micro.per_step, 1, self.config.seed, start):
            yield rows

    def _step(self, rows: Sequence[Any]) -> StepLoss:
        return self.step([self.rows.batch(part) for part in self.micro.split(rows)])

    def _validation(self) -> Validation | None:
        if not self.rows.inputs.val:
            return None
        return Validation(self._look, self.keeper.keep_best if self.config.load_best_model_at_end else None)

    def _look(self) -> float:
        batches = self.rows.validation(self.micro.size)
        return mean_loss(self.model, batches, self.device, self.cast, self.step.loss)

    def _tuned(self, progress: Progress, seconds: float) -> Tuned:
        sizes = [(count_weights(p), p.requires_grad) for p in self.model.parameters()]
        on_gpu = self.device.type == "cuda"
        return Tuned(
            progress,
            self.plan,
            seconds,
            sum(n for n, on in sizes if on),
            sum(n for n, _ in sizes),
            torch.cuda.get_device_name(self.device) if on_gpu else self.device.type,
            self._keep(progress),
            self.micro.size,
            self.micro.accumulation,
            self.spent.tokens_per_second,
            peak_memory(self.device),
            framework_of(self.model),
            base_format(self.model),
        )

    def _keep(self, progress: Progress) -> int:
        """Put the best tensors into the model; return the step they are of."""
        best = best_step(progress.eval_losses) if self.config.load_best_model_at_end else None
        if best is None:
            return progress.step
        self.keeper.restore_best(best)
        return best


def autocast_dtype(config: TrainingConfig, model: PreTrainedModel | PeftModel) -> torch.dtype | None:
    """Decide the autocast dtype: as asked by fp16/bf16, else the dtype of the weights."""
    if config.bf16:
        return torch.bfloat16
    if config.fp16:
        return torch.float16
    if config.bf16 is False and config.fp16 is False:
        return None
    stored = getattr(model.config, "quantization_config", None)
    if stored is not None:
        # A quantized base is prepared with its other weights in float32; what it computes in is written down.
        return compute_dtype(stored, model.config.dtype)
    return next((p.dtype for p in model.parameters() if p.dtype in (torch.float16, torch.bfloat16)), None)


def compute_dtype(quantization: Any, loaded: Any) -> torch.dtype | None:
    """Return the dtype a quantized base multiplies in; None for float32.

    Args:
        quantization: How bitsandbytes holds the base.
        loaded: The dtype it was loaded in, which is all that an 8-bit base says.
    """
    stated = quantization if isinstance(quantization, dict) else quantization.to_dict()
    dtype = loaded if stated.get("load_in_8bit") else stated.get("bnb_4bit_compute_dtype")
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    return dtype if dtype in (torch.float16, torch.bfloat16) else None


def save_adapter(model: PeftModel, target: Path) -> None:
    """Write ``adapter_config.json``, ``adapter_model.safetensors`` and, in ``base.json``, the base; atomically."""
    with atomic_path(target) as part:
        # With an adapter on the head, PEFT would put the head itself and the embedding beside A and B.
        model.save_pretrained(str(part), safe_serialization=True, save_embedding_layers=False)
        # PEFT's template card says nothing about this model; the bundle has a real one.
        (part / "README.md").unlink(missing_ok=True)
        # PEFT writes a set in an order that changes from process to process.
        settings = json.loads((part / "adapter_config.json").read_text(encoding="utf-8"))
        settings["target_modules"] = sorted(settings["target_modules"])
        write_json(part / "adapter_config.json", settings)
        write_identity(part, model.get_base_model())


def validation_loss(model: PreTrainedModel, inputs: SftInputs, size: int) -> float | None:
    """Return the validation loss of a model as it is, without an adapter; None without validation rows.

    Args:
        model: The model, in the precision it is to be judged in.
        inputs: Tokenized examples; the validation rows are read one example a row.
        size: Rows at once.
    """
    if not inputs.val:
        return None
    device = next(model.parameters()).device
    batches = (collate(inputs.val[n : n + size], inputs.pad_id) for n in range(0, len(inputs.val), size))
    with explained():
        return mean_loss(model, batches, device, autocast(device, None))
