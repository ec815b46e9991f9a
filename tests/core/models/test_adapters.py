"""Adapters: silent at the start, equal after merging, and where they are put."""

from pathlib import Path

import pytest
import torch

from core.errors import ConfigError
from core.models.adapters import attach, merge, targets
from core.models.config import LoraConfig
from core.models.loading import load_folder
from core.training.sft import save_adapter

PLAIN = LoraConfig(r=4, use_gradient_checkpointing=False)
IDS = torch.arange(6, 30)[None]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def test_a_fresh_adapter_changes_nothing(base_folder: Path):
    before = logits(load_folder(base_folder))
    assert torch.equal(logits(attach(load_folder(base_folder), PLAIN)), before)


def test_parameter_count_is_rank_times_both_widths(base_folder: Path):
    model = attach(load_folder(base_folder), PLAIN)
    widths = {"q_proj": (32, 32), "k_proj": (32, 16), "v_proj": (32, 16), "o_proj": (32, 32),
              "gate_proj": (32, 64), "up_proj": (32, 64), "down_proj": (64, 32)}  # fmt: skip
    expected = 2 * sum(4 * (i + o) for i, o in widths.values())
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected


@pytest.mark.parametrize("rslora", [False, True])
def test_merged_logits_equal_base_plus_adapter_and_the_formula(
    base_folder: Path, tmp_path: Path, rslora: bool
):
    config = PLAIN.model_copy(update={"use_rslora": rslora})
    model = attach(load_folder(base_folder), config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_" in name:
                tensor.normal_(std=0.1)
    adapted = logits(model)
    save_adapter(model, tmp_path / "lora")
    merged, error = merge(load_folder(base_folder), tmp_path / "lora", IDS)
    assert error < 1e-4
    assert torch.allclose(logits(merged), adapted, atol=1e-4)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    scale = config.lora_alpha / (config.r**0.5 if rslora else config.r)
    wanted = layer.base_layer.weight + scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(merged.model.layers[0].self_attn.q_proj.weight, wanted, atol=1e-6)


def test_gradient_checkpointing_changes_memory_not_the_gradient(base_folder: Path):
    def gradient(checkpointing: bool) -> torch.Tensor:
        config = PLAIN.model_copy(update={"use_gradient_checkpointing": checkpointing})
        model = attach(load_folder(base_folder), config).train()
        model(input_ids=IDS, labels=IDS).loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])

    assert torch.allclose(gradient(True), gradient(False), atol=1e-7)


def test_switches_choose_layers(base_folder: Path):
    model = load_folder(base_folder)
    only_mlp = PLAIN.model_copy(update={"finetune_attention_modules": False})
    assert targets(only_mlp, model) == ["gate_proj", "up_proj", "down_proj"]
    wrong = PLAIN.model_copy(update={"target_modules": ("in_proj",)})
    with pytest.raises(ConfigError, match=r"lora.target_modules.*in_proj(.|\n)*q_proj"):
        targets(wrong, model)


def test_vision_towers_get_no_adapter_unless_asked(base_folder: Path):
    class Seeing(torch.nn.Module):
        """A model with a tower whose projections are named like those of its language part."""

        def __init__(self) -> None:
            super().__init__()
            self.language = load_folder(base_folder)
            self.vision_tower = torch.nn.ModuleDict({"q_proj": torch.nn.Linear(8, 8)})
            self.config = self.language.config
            self.prepare_inputs_for_generation = None

        def forward(self, **inputs):
            return self.language(**inputs)

    def adapted(wanted: bool) -> set[str]:
        config = PLAIN.model_copy(update={"finetune_vision_layers": wanted})
        return {n.split(".")[2] for n, p in attach(Seeing(), config).named_parameters() if p.requires_grad}

    assert adapted(False) == {"language"}
    assert adapted(True) == {"language", "vision_tower"}
