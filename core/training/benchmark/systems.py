"""The systems: how each loads the base, and what its training step is."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor

from core.data.batches import Batch
from core.errors import ModelError
from core.models.adapters import attach
from core.models.loading import load_model, read_hf_config
from core.training.benchmark.adapter import fill
from core.training.benchmark.case import Case
from core.training.benchmark.rows import document_lengths
from core.training.config import TrainingConfig
from core.training.language import Autocast, LanguageStep, autocast, to_device, trained_tokens
from core.training.sft import autocast_dtype

Step = Callable[[Sequence[Batch]], Tensor]
"""Micro-batches on the CPU to the mean loss per learned token, with the gradient left in the parameters."""


class Prepared(NamedTuple):
    """A system, ready to train."""

    model: PeftModel
    step: Step
    device: torch.device
    micro_batch: int
    """Rows of a forward pass."""


def prepare(case: Case) -> Prepared:
    """Load the base, put the adapter on it and fill it, and choose the system's training step.

    ``fused`` and ``hf`` run the step of ``factory run``. The others are asked for their own loss,
    ``model(input_ids, labels=...)``, which is what their kernels were made for. All compute under autocast, as
    Hugging Face's trainer does.
    """
    if case.system == "liger":
        patch_with_liger(Path(case.model))
    return equip(attach(load_model(case.model_block(), trainable=True), case.lora_block()), case)


def equip(model: PeftModel, case: Case) -> Prepared:
    """Fill a model's adapter and choose the system's training step; see ``prepare``."""
    micro_batch = case.micro_batch or case.rows
    if case.system == "fused":
        grant(model, case.budget)
        micro_batch = case.micro_batch or chosen_micro_batch(model, case)
    fill(model, case.seed)
    device = next(model.parameters()).device
    cast = autocast(device, autocast_dtype(TrainingConfig(), model))
    if case.system in ("fused", "hf"):
        language = LanguageStep(model, device, cast)
        return Prepared(model, lambda batches: language(batches).loss, device, micro_batch)
    arguments = unsloth_arguments if case.system == "unsloth" else plain_arguments
    return Prepared(model, OwnLoss(model, device, cast, arguments), device, micro_batch)


def patch_with_liger(folder: Path) -> None:
    """Replace Transformers' modules of the base's family by Liger's, with the choices of its authors.

    Raises:
        ModelError: If Liger has none for the family.
    """
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    family = str(read_hf_config(folder).get("model_type"))
    if family not in MODEL_TYPE_TO_APPLY_LIGER_FN:
        raise ModelError(f"Liger has no kernels for {family}", where=str(folder))
    MODEL_TYPE_TO_APPLY_LIGER_FN[family]()


def grant(model: PeftModel, budget: float | None) -> None:
    """Give the fused engine so many GiB for activations; None leaves it the choice."""
    from core.models.fused.state import fused_state

    state = fused_state(model)
    if state is not None:
        state.activation_bytes = None if budget is None else int(budget * 2**30)


def chosen_micro_batch(model: PeftModel, case: Case) -> int:
    """Ask the fused engine, as ``factory run`` does."""
    from core.models.fused.state import fused_state

    state = fused_state(model)
    return case.rows if state is None else state.best_micro_batch(case.rows, case.length, case.rows)


class OwnLoss:
    """A training step around the loss that the model itself returns."""

    def __init__(
        self,
        model: PeftModel,
        device: torch.device,
        cast: Autocast,
        arguments: Callable[[Batch], dict[str, Tensor]],
    ) -> None:
        """Remember how the model is run and what it is told."""
        self.model, self.device, self.cast, self.arguments = model, device, cast, arguments

    def __call__(self, batches: Sequence[Batch]) -> Tensor:
        """Run forward and backward; every micro-batch counts by its learned tokens."""
        self.model.train()
        counts = [trained_tokens(batch) for batch in batches]
        loss = torch.zeros((), device=self.device)
        for batch, count in zip(batches, counts, strict=True):
            given: dict[str, Any] = {
                # Lengths of documents stay where they are: the library reads them on the CPU.
                name: value if name == "packed_seq_lengths" else to_device(value, self.device)
                for name, value in self.arguments(batch).items()
            }
            with self.cast():
                share = self.model(**given, use_cache=False).loss * (count / sum(counts))
            share.backward()
            loss += share.detach()
        return loss


def plain_arguments(batch: Batch) -> dict[str, Tensor]:
    """Return what a model of Transformers is told: packed documents are told apart by their positions."""
    told = {"input_ids": batch.input_ids, "labels": batch.labels}
    return told if batch.position_ids is None else {**told, "position_ids": batch.position_ids}


def unsloth_arguments(batch: Batch) -> dict[str, Tensor]:
    """Return what Unsloth is told: packed documents lie in one long row, with their lengths beside it."""
    if batch.position_ids is None:
        return plain_arguments(batch)
    one_row = {name: tensor.reshape(1, -1) for name, tensor in plain_arguments(batch).items()}
    return {**one_row, "packed_seq_lengths": torch.tensor(document_lengths([batch]), dtype=torch.int32)}
