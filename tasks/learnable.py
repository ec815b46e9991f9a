"""Will it learn? The look at the tokens, with the real tokenizer and, if it is small, the real model.

Runs after the split on its training rows, and in ``factory validate`` on rows straight from the sources.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from core.artifacts import write_json
from core.data.config import ChatTemplateName
from core.data.learning_findings import with_overfit
from core.data.learning_reports import LearnReport, OverfitReport
from core.data.records import Record, from_row
from core.errors import ModelError, UserError
from core.models.config import LoraConfig, ModelConfig
from core.models.frameworks import choose_framework
from core.models.quiet import quiet
from core.models.resources import GB, TrainingLoad, estimate_training, shape_from_config, storage_of
from core.training.config import TrainingConfig
from tasks.chat_tokens import READS as CHAT
from tasks.chat_tokens import chat_tokenizer

if TYPE_CHECKING:
    from core.data.chat import ChatTokenizer

READS = (
    "core.data.learnable",
    "core.data.learning_findings",
    "core.data.learning_reports",
    "core.data.round_trip",
    "core.data.token_text",
    "core.models.adapters",
    "core.models.base_identity",
    "core.models.quiet",
    "core.models.resources",
    "core.sinks",
    "core.training.checkpoints",
    "core.training.head",
    "core.training.hints",
    "core.training.job",
    "core.training.language",
    "core.training.loop",
    "core.training.memory",
    "core.training.meter",
    "core.training.optim",
    "core.training.overfit",
    "core.training.packing",
    "core.training.room",
    "core.training.rows",
    "core.training.sft",
    "core.training.stopping",
    "tasks.learnable",
    *CHAT,
)
SAMPLE = 2000
"""Rows that are enough to see what is wrong: a fault in one row of 500 is missed with a chance of 2 %."""
LARGEST_ON_CPU = 50_000_000
"""Parameters up to which sixty steps on a CPU take seconds."""


class Setup(NamedTuple):
    """The blocks of a run that decide what a model is taught, and how."""

    model: ModelConfig
    lora: LoraConfig
    training: TrainingConfig
    template: ChatTemplateName


def learn_report(
    base: Path, train: Path, setup: Setup, *, overfit: bool = True, target: Path | None = None
) -> LearnReport:
    """Look at a sample of a training split, always the same one.

    Args:
        base: Folder of the base model.
        train: The split's file.
        setup: Model, adapter, training and template of the run.
        overfit: Also try to learn one batch by heart, if the model is small enough.
        target: Where to write the report as JSON.
    """
    records, total = sample_file(train, SAMPLE)
    report = learn(records, base, setup, overfit=overfit, of_rows=total)
    if target:
        write_json(target, report.model_dump(mode="json"))
    return report


def learn(
    records: Sequence[Record], base: Path, setup: Setup, *, overfit: bool = True, of_rows: int | None = None
) -> LearnReport:
    """Look at records with the base's tokenizer, and try to learn a few of them.

    Args:
        records: A sample of the rows.
        base: Folder of the base model; without weights, only the tokens are looked at.
        setup: Model, adapter, training and template of the run.
        overfit: Also try to learn one batch by heart, if the model is small enough.
        of_rows: Rows there are, if known.
    """
    with quiet():
        from core.data.learnable import look

        chat = _tokenizer(base, setup.template)
        report = look(records, chat, setup.model.max_seq_length, of_rows=of_rows, model=setup.model.name)
        return with_overfit(report, _overfit(records, chat, base, setup)) if overfit else report


def sample_file(path: Path, size: int) -> tuple[list[Record], int]:
    """Return at most ``size`` records, evenly spread over a split's file, and how many it has."""
    with path.open("rb") as lines:
        total = sum(1 for _ in lines)
    stride = max(1, math.ceil(total / size))
    with path.open("rb") as lines:
        records = [from_row(json.loads(line)) for place, line in enumerate(lines) if place % stride == 0]
    return records, total


def count_stored(folder: Path) -> int:
    """Count the parameters in a model folder's safetensors files, by their headers alone."""
    return sum(_count_file(file) for file in sorted(folder.glob("*.safetensors")))


def _count_file(file: Path) -> int:
    # The format: eight bytes with the length of a JSON header, which names every tensor's shape.
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        if size > file.stat().st_size:
            return 0
        header = json.loads(stream.read(size))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


def _tokenizer(base: Path, template: ChatTemplateName) -> "ChatTokenizer":
    try:
        return chat_tokenizer(base, template)
    except (KeyError, TypeError, AttributeError) as error:
        # What the library raises on a tokenizer.json that is JSON and no tokenizer.
        raise ModelError(
            f"the tokenizer cannot be read ({type(error).__name__}: {error})",
            where=str(base),
            fix="download tokenizer.json and tokenizer_config.json again",
        ) from error


def _overfit(records: Sequence[Record], chat: "ChatTokenizer", base: Path, setup: Setup) -> OverfitReport:
    if reason := _too_large(base, setup):
        return OverfitReport(verdict="skipped", reason=reason)
    from core.data.learnable import short_examples
    from core.training.overfit import overfit_base

    # On a CPU, four bits make a step ten times slower and save nothing that matters at this size.
    in_4bit = setup.model.load_in_4bit and _has_gpu()
    model = setup.model.model_copy(update={"name": str(base), "load_in_4bit": in_4bit, "framework": "hf"})
    batch = short_examples(records, chat, setup.model.max_seq_length)
    return overfit_base(model, setup.lora, setup.training, batch, chat.pad_id)


def _too_large(base: Path, setup: Setup) -> str:
    """Say why the model is not tried; empty if it is small enough."""
    try:
        framework = choose_framework(setup.model, has_gpu=_has_gpu()).framework
    except UserError as error:
        return f"training is not possible here: {error.what}"
    # fused computes what hf does, so hf tries it in its place.
    if framework == "unsloth":
        return f"it is only done where hf trains, and here {framework} does"
    parameters = count_stored(base)
    if not parameters:
        return "the model's weights are not on this machine"
    if not _has_gpu():
        most = LARGEST_ON_CPU / 1e6
        text = f"{parameters / 1e6:,.0f} M parameters are too many for a CPU ({most:.0f} M at most)"
        return text if parameters > LARGEST_ON_CPU else ""
    import torch

    need, free = _needed(base, setup, parameters), torch.cuda.mem_get_info()[0]
    if need <= free:
        return ""
    return f"it would take about {need / GB:.1f} GB of GPU memory, {free / GB:.1f} GB are free"


def _has_gpu() -> bool:
    from core.models.loading import pick_device

    return pick_device().type == "cuda"


def _needed(base: Path, setup: Setup, parameters: int) -> int:
    """Estimate the bytes one micro-step takes; examples are short, so a small window will do."""
    from core.models.loading import read_hf_config

    shape, width = shape_from_config(read_hf_config(base)), 4 if setup.model.dtype == "float32" else 2
    if shape is None:
        return 2 * width * parameters
    load = TrainingLoad(
        micro_batch=min(8, setup.training.per_device_train_batch_size),
        window=min(512, setup.model.max_seq_length),
        optimizer=setup.training.optim,
        is_checkpointed=bool(setup.lora.use_gradient_checkpointing),
        storage=storage_of(setup.model),
        width=width,
    )
    return estimate_training(shape, setup.lora, load).total
