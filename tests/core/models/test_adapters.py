"""Adapters: silent at the start, equal after merging, and where they are put."""

from pathlib import Path

import pytest
import torch

from core.errors import ConfigError
from core.models.adapters import adapter_parity, attach
from core.models.config import LINEAR_PROJECTIONS, LoraConfig, ModelConfig
from core.models.loading import load_folder, load_model
from core.models.merging import exact_weight, fold
from core.models.target_names import match_targets
from core.models.targeting import targets
from core.training.sft import save_adapter
from tests.families import FAMILIES, VARIANTS, build

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
    merged, errors = fold(load_folder(base_folder), tmp_path / "lora", IDS)
    error = errors.logits
    assert error < 1e-4
    assert torch.allclose(logits(merged), adapted, atol=1e-4)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    scale = config.lora_alpha / (config.r**0.5 if rslora else config.r)
    wanted = layer.base_layer.weight + scale * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    assert torch.allclose(merged.model.layers[0].self_attn.q_proj.weight, wanted, atol=1e-6)


@pytest.mark.parametrize(
    "held", [{"load_in_4bit": False}, {}, {"load_in_8bit": True}], ids=["full", "nf4", "int8"]
)
@pytest.mark.parametrize(
    "kind", [{}, {"use_dora": True}, {"lora_dropout": 0.3}], ids=["lora", "dora", "dropout"]
)
def test_gradient_checkpointing_changes_memory_not_the_loss_or_the_gradient(base_folder: Path, held, kind):
    if "use_dora" in kind and "load_in_8bit" in held:
        pytest.skip("refused in the config")

    def step(checkpointing: bool) -> tuple[float, torch.Tensor]:
        config = PLAIN.model_copy(update={"use_gradient_checkpointing": checkpointing, **kind})
        model = attach(load_model(ModelConfig(name=str(base_folder), **held), trainable=True), config).train()
        assert model.is_gradient_checkpointing is checkpointing
        stir(model)
        torch.manual_seed(5)
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        return float(loss.detach()), torch.cat(
            [p.grad.flatten() for p in model.parameters() if p.requires_grad]
        )

    (loss, gradient), (other_loss, other_gradient) = step(True), step(False)
    assert loss == pytest.approx(other_loss, abs=1e-6)
    assert torch.allclose(gradient, other_gradient, atol=1e-6)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    "variant", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"]
)
def test_an_adapted_layer_computes_the_published_formula(base_folder: Path, variant):
    config = PLAIN.model_copy(update={"lora_alpha": 24, **variant})
    model = attach(load_folder(base_folder), config).eval()
    stir(model)
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    x = torch.randn(5, 32, dtype=torch.float64)
    weight = layer.base_layer.weight.double()
    down, up = layer.lora_A["default"].weight.double(), layer.lora_B["default"].weight.double()
    whole = weight + 24 / (4**0.5 if "use_rslora" in variant else 4) * up @ down
    if "use_dora" in variant:
        length = layer.lora_magnitude_vector["default"].weight.double()
        whole = length[:, None] * whole / torch.linalg.vector_norm(whole, dim=1, keepdim=True)
    assert torch.allclose(layer(x.float()).double(), x @ whole.T, atol=1e-5)
    assert torch.allclose(exact_weight(layer).double(), whole, atol=1e-6)
    assert not torch.allclose(whole, weight, atol=1e-3)


def test_dora_starts_at_the_length_of_every_row(base_folder: Path):
    model = attach(load_folder(base_folder), PLAIN.model_copy(update={"use_dora": True}))
    layer = model.base_model.model.model.layers[0].self_attn.v_proj
    rows = torch.linalg.vector_norm(layer.base_layer.weight, dim=1)
    assert torch.allclose(layer.lora_magnitude_vector["default"].weight, rows)
    assert torch.allclose(logits(model), logits(load_folder(base_folder)), atol=1e-5)


def stir(model) -> None:
    """Give every adapter weight a value, so that none of its effects is zero."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
            if "magnitude" in name:
                tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))


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


@pytest.mark.parametrize("family", [*FAMILIES, *VARIANTS])
@pytest.mark.parametrize("named", [LINEAR_PROJECTIONS, "all-linear"], ids=["default list", "all-linear"])
def test_every_family_gets_an_adapter_on_every_projection(family: str, named, tmp_path: Path):
    base = load_folder(build(family, tmp_path / "m"))
    linear = {n for n, m in base.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"}
    model = attach(base, PLAIN.model_copy(update={"target_modules": named}))
    adapted = {
        n.split(".lora_A")[0].removeprefix("base_model.model.")
        for n, _ in model.named_parameters()
        if "lora_A" in n
    }
    assert adapted == linear
    assert logits(model).isfinite().all()


def test_projections_that_a_family_fuses_are_found_under_the_fused_name():
    linears = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]

    def chosen(*names: str) -> tuple[str, ...]:
        return match_targets(PLAIN.model_copy(update={"target_modules": names}), linears, linears).chosen

    assert chosen(*LINEAR_PROJECTIONS) == ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")
    assert chosen("q_proj", "v_proj") == ("qkv_proj",)
    assert chosen("up_proj", "qkv_proj") == ("gate_up_proj", "qkv_proj")
    # where a family has both, the name itself wins
    both = match_targets(PLAIN.model_copy(update={"target_modules": ("q_proj",)}), [], ["q_proj", "qkv_proj"])
    assert both.chosen == ("q_proj",)


def test_a_run_never_adapts_less_than_asked(base_folder: Path):
    config = PLAIN.model_copy(update={"target_modules": ("q_proj", "in_proj", "embed_tokens")})
    with pytest.raises(ConfigError, match=r"none of the layers in_proj, embed_tokens(.|\n)*all-linear"):
        targets(config, load_folder(base_folder))


def test_a_head_that_is_also_the_embedding_gets_no_adapter(base_folder: Path, tmp_path: Path):
    config = PLAIN.model_copy(update={"target_modules": ("q_proj", "lm_head")})
    with pytest.raises(ConfigError, match="lm_head shares its weights"):
        attach(load_folder(base_folder), config)
    assert targets(config, load_folder(build("llama-3.1", tmp_path / "m"))) == ["q_proj", "lm_head"]


def test_switches_hold_for_all_linear_too(base_folder: Path):
    everything = PLAIN.model_copy(update={"target_modules": "all-linear"})
    model = load_folder(base_folder)
    assert set(targets(everything, model)) == set(LINEAR_PROJECTIONS)
    no_mlp = everything.model_copy(update={"finetune_mlp_modules": False})
    assert set(targets(no_mlp, model)) == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_parity_names_every_tensor_that_differs(base_folder: Path):
    def adapted(**changes):
        return attach(load_folder(base_folder), PLAIN.model_copy(update=changes))

    assert adapter_parity(adapted(), adapted(random_state=1)) == ()
    lines = adapter_parity(adapted(target_modules=("q_proj",)), adapted(target_modules=("v_proj",)))
    assert len(lines) == 8
    assert {line.split(": ")[1] for line in lines} == {"only in the first", "only in the second"}
    lines = adapter_parity(adapted(), adapted(r=8))
    assert any("[4, 32] float32 and [8, 32] float32" in line for line in lines)
    assert len(adapter_parity(adapted(), adapted().half())) == 28
