"""What a checkpointed forward pass leaves behind."""

from pathlib import Path

import pytest
import torch

from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.loading import load_model

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def nodes_behind(loss: torch.Tensor) -> set[str]:
    """Names of all operations that wait for the backward pass."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [following for following, _ in node.next_functions]
    return {type(node).__name__ for node in seen}


def loss_of(base: Path, held: dict[str, bool], checkpointing: bool) -> torch.Tensor:
    config = LoraConfig(r=4, use_gradient_checkpointing=checkpointing)
    model = attach(load_model(ModelConfig(name=str(base), **held), trainable=True), config).train()
    return model(input_ids=IDS, labels=IDS).loss


def test_no_eight_bit_product_waits_with_its_input_when_blocks_are_checkpointed(base_folder: Path):
    held = {"load_in_4bit": False, "load_in_8bit": True}
    kept = nodes_behind(loss_of(base_folder, held, checkpointing=False))
    assert any("MatMul8bit" in name for name in kept)
    checkpointed = nodes_behind(loss_of(base_folder, held, checkpointing=True))
    assert not any("MatMul8bit" in name for name in checkpointed)
    assert any("Checkpoint" in name for name in checkpointed)


@pytest.mark.parametrize("held", [{"load_in_4bit": False}, {"load_in_4bit": True}], ids=["full", "nf4"])
def test_other_bases_are_checkpointed_through_the_hooks_on_saved_tensors(base_folder: Path, held):
    checkpointed = nodes_behind(loss_of(base_folder, held, checkpointing=True))
    assert not any("Checkpoint" in name for name in checkpointed)
