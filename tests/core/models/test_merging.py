"""Folding in: rounded once, errors measured, and the base of the adapter or none."""

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from core.errors import ModelError
from core.models.adapter_files import WEIGHTS
from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.loading import load_folder, load_model
from core.models.merging import adapted_layers, exact_weight, fold, relative, unmerge_error
from core.training.sft import save_adapter
from tests.families import build

IDS = torch.arange(6, 30)[None]
KINDS = [{}, {"use_rslora": True}, {"use_dora": True}]


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.float()


def trained(base: Path, folder: Path, **changes) -> Path:
    """Save an adapter whose weights are not at their initial values."""
    model = attach(load_folder(base), LoraConfig(r=4, use_gradient_checkpointing=False, **changes))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if tensor.requires_grad and "magnitude" not in name:
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.05)
            elif tensor.requires_grad:
                tensor.mul_(1 + 0.2 * torch.rand(tensor.shape, generator=generator))
    save_adapter(model, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "rslora", "dora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_folded_weight_is_the_exact_one_rounded_once(base_folder: Path, tmp_path: Path, kind, dtype):
    adapter = trained(base_folder, tmp_path / "lora", **kind)
    exact = {}
    reference = PeftModel.from_pretrained(load_folder(base_folder, dtype), adapter)
    for name, layer in reference.named_modules():
        if hasattr(layer, "lora_A"):
            exact[name.removeprefix("base_model.model.")] = exact_weight(layer)
    folded = fold(load_folder(base_folder, dtype), adapter, IDS)
    worst = 0.0
    for name, wanted in exact.items():
        got = folded.model.get_submodule(name).weight
        assert got.dtype == dtype
        assert torch.equal(got, wanted.to(dtype))
        worst = max(worst, relative(got.float() - wanted, wanted))
    assert folded.errors.rounding == pytest.approx(worst, rel=1e-6)
    assert folded.errors.rounding <= torch.finfo(dtype).eps / 2 * 1.01
    assert not any("lora" in name for name, _ in folded.model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_once_errs_less_than_adding_in_16_bits(base_folder: Path, tmp_path: Path, dtype):
    adapter = trained(base_folder, tmp_path / "lora")
    once = {n: m.weight for n, m in fold(load_folder(base_folder, dtype), adapter, IDS).model.named_modules()
            if isinstance(m, torch.nn.Linear)}  # fmt: skip
    other = PeftModel.from_pretrained(load_folder(base_folder, dtype), adapter)
    exact = {
        n.removeprefix("base_model.model."): exact_weight(m).double()
        for n, m in other.named_modules()
        if hasattr(m, "lora_A")
    }
    twice = {n: m.weight for n, m in other.merge_and_unload(safe_merge=True).named_modules() if n in exact}
    ours, theirs = (sum(float((w[n].double() - exact[n]).pow(2).sum()) for n in exact) for w in (once, twice))
    assert ours < 0.8 * theirs


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "rslora", "dora"])
def test_merged_logits_are_those_of_base_and_adapter(base_folder: Path, tmp_path: Path, kind):
    adapter = trained(base_folder, tmp_path / "lora", **kind)
    with_adapter = logits(PeftModel.from_pretrained(load_folder(base_folder), adapter))
    assert (with_adapter - logits(load_folder(base_folder))).abs().max() > 0.05
    folded = fold(load_folder(base_folder), adapter, IDS)
    difference = float((logits(folded.model) - with_adapter).abs().max())
    assert folded.errors.logits == pytest.approx(difference, abs=1e-7)
    assert difference < 1e-4


@pytest.mark.parametrize("held", [{"load_in_4bit": False}, {}], ids=["full", "nf4"])
@pytest.mark.parametrize("kind", KINDS, ids=["lora", "rslora", "dora"])
def test_an_adapter_on_an_untied_head_is_low_rank_alone_and_folds_in(tmp_path: Path, kind, held):
    base = build("llama-3.1", tmp_path / "base")
    config = LoraConfig(r=4, use_gradient_checkpointing=False, target_modules=("q_proj", "lm_head"), **kind)
    model = attach(load_model(ModelConfig(name=str(base), **held), trainable=True), config)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):  # A moves from the second step on, for B begins at zero.
        model.train()(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_adapter(model, tmp_path / "lora")
    parts = {
        name.removesuffix(".weight").rsplit(".", 1)[-1] for name in load_file(tmp_path / "lora" / WEIGHTS)
    }
    assert parts == {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if "use_dora" in kind else set())
    with_adapter = logits(PeftModel.from_pretrained(load_folder(base), tmp_path / "lora"))
    folded = fold(load_folder(base), tmp_path / "lora", IDS)
    assert torch.allclose(logits(folded.model), with_adapter, atol=1e-4)
    if "load_in_4bit" in held:  # Rounded to four bits, the base answers otherwise.
        assert torch.allclose(with_adapter, logits(model), atol=1e-4)
    assert not torch.allclose(folded.model.lm_head.weight, load_folder(base).lm_head.weight, atol=1e-2)


def test_a_head_that_came_with_an_adapter_is_refused_with_the_way_to_save_it(tmp_path: Path):
    base = build("llama-3.1", tmp_path / "base")
    settings = LoraConfig(r=4, use_gradient_checkpointing=False, target_modules=("q_proj", "lm_head"))
    attach(load_folder(base), settings).save_pretrained(tmp_path / "lora", save_embedding_layers=True)
    with pytest.raises(ModelError, match=r"lm_head\.base_layer(.|\n)*save_embedding_layers=False"):
        fold(load_folder(base), tmp_path / "lora", IDS)


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01), (torch.float16, 0.002)]
)
def test_unmerging_gives_the_weights_back_within_rounding(base_folder: Path, tmp_path: Path, dtype, limit):
    adapter = trained(base_folder, tmp_path / "lora")
    errors = fold(load_folder(base_folder, dtype), adapter, IDS).errors
    # the same by PEFT's own whole-model functions
    base = load_folder(base_folder, dtype)
    before = {
        n: m.weight.detach().clone().float()
        for n, m in base.named_modules()
        if isinstance(m, torch.nn.Linear)
    }
    model = PeftModel.from_pretrained(base, adapter)
    model.merge_adapter()
    model.unmerge_adapter()
    changes = []
    for name, layer in model.named_modules():
        if hasattr(layer, "lora_A"):
            weight = before[name.removeprefix("base_model.model.")]
            changes.append(float((layer.base_layer.weight.float() - weight).abs().max() / weight.abs().max()))
    assert errors.unmerge == pytest.approx(max(changes), rel=1e-5)
    assert errors.unmerge <= limit
    assert (errors.unmerge > 0) is (max(changes) > 0)


def test_measuring_puts_every_byte_back(base_folder: Path, tmp_path: Path):
    model = PeftModel.from_pretrained(
        load_folder(base_folder, torch.bfloat16), trained(base_folder, tmp_path / "l")
    )
    for layer in adapted_layers(model):
        before = layer.base_layer.weight.detach().clone()
        assert unmerge_error(layer) > 0
        assert torch.equal(layer.base_layer.weight, before)
        assert not layer.merged


def test_a_quantized_base_is_not_folded_into(base_folder: Path, tmp_path: Path):
    adapter = trained(base_folder, tmp_path / "lora")
    with pytest.raises(ModelError, match="not folded into a quantized base"):
        fold(load_model(ModelConfig(name=str(base_folder)), trainable=True), adapter, IDS)


def test_an_adapter_that_is_not_finite_is_refused(base_folder: Path, tmp_path: Path):
    model = attach(load_folder(base_folder), LoraConfig(r=4, use_gradient_checkpointing=False))
    with torch.no_grad():
        model.base_model.model.model.layers[1].mlp.up_proj.lora_B["default"].weight[0, 0] = torch.nan
    save_adapter(model, tmp_path / "lora")
    with pytest.raises(ModelError, match="not finite"):
        fold(load_folder(base_folder), tmp_path / "lora", IDS)


def test_an_adapter_of_a_quantized_base_folds_into_the_full_one(base_folder: Path, tmp_path: Path):
    model = attach(load_model(ModelConfig(name=str(base_folder)), trainable=True), LoraConfig(r=4))
    save_adapter(model, tmp_path / "lora")
    folded = fold(load_folder(base_folder), tmp_path / "lora", IDS)
    assert torch.equal(logits(folded.model), logits(load_folder(base_folder)))  # B is zero


def test_pickled_or_damaged_adapters_are_refused(base_folder: Path, tmp_path: Path):
    adapter = trained(base_folder, tmp_path / "lora")
    file = adapter / "adapter_model.safetensors"
    cut = Path(shutil.copytree(adapter, tmp_path / "cut"))
    (cut / file.name).write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors is truncated"):
        fold(load_folder(base_folder), cut, IDS)
    torch.save({}, adapter / "adapter_model.bin")
    file.unlink()
    with pytest.raises(ModelError, match="pickled weights are refused"):
        fold(load_folder(base_folder), adapter, IDS)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="is no LoRA adapter"):
        fold(load_folder(base_folder), adapter, IDS)
