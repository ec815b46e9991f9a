"""The adapter's matrices, against the product written out."""

import math
from pathlib import Path

import pytest
import torch

from core.models.adapters import attach
from core.models.config import LoraConfig
from core.models.loading import load_folder
from core.training.lora_analysis import analyse, analyse_adapter, effective_rank, singular_values
from core.training.sft import save_adapter


def factors(r: int, inner: int, outer: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(r)
    return torch.randn(r, inner, generator=generator), torch.randn(outer, r, generator=generator)


@pytest.mark.parametrize(
    ("r", "inner", "outer"), [(4, 30, 20), (8, 9, 64), (16, 8, 40), (16, 40, 8), (1, 3, 3)]
)
def test_norms_and_singular_values_are_those_of_the_product(r: int, inner: int, outer: int):
    a, b = factors(r, inner, outer)
    product = 0.5 * (b.double() @ a.double())
    sigma = torch.linalg.svdvals(product)[:r]
    found = singular_values(a, b) * 0.5
    assert torch.allclose(found, sigma[: len(found)], atol=1e-10)
    layer = analyse("q", a, b, 0.5)
    assert layer.norm_update == pytest.approx(float(product.norm()), rel=1e-10)
    assert (layer.norm_a, layer.norm_b) == pytest.approx((float(a.norm()), float(b.norm())), rel=1e-6)
    assert layer.top == pytest.approx(tuple(sigma[:5].tolist()), abs=1e-10)
    shares = [s / sum(sigma.tolist()) for s in sigma.tolist()]
    expected = math.exp(-sum(s * math.log(s) for s in shares if s > 1e-14))
    assert layer.effective_rank == pytest.approx(expected, rel=1e-6)


def test_equal_singular_values_use_every_direction_and_one_uses_one():
    assert effective_rank(torch.full((6,), 2.5, dtype=torch.float64)) == pytest.approx(6.0)
    assert effective_rank(torch.tensor([3.0, 0.0, 0.0])) == pytest.approx(1.0)
    assert effective_rank(torch.zeros(4)) == 0.0


def test_every_layer_of_a_saved_adapter_is_described(base_folder: Path, tmp_path: Path):
    model = attach(load_folder(base_folder), LoraConfig(r=4, lora_alpha=8))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and "v_proj" in name:
                parameter.normal_()
    save_adapter(model, tmp_path / "lora")
    analysis = analyse_adapter(tmp_path / "lora", 2.0)
    assert len(analysis.layers) == 2 * 7
    layers = {layer.name: layer for layer in analysis.layers}
    value = layers["model.layers.1.self_attn.v_proj"]
    module = model.get_submodule("base_model.model.model.layers.1.self_attn.v_proj")
    assert value.norm_update == pytest.approx(float(module.get_delta_weight("default").norm()), rel=1e-5)
    untrained = layers["model.layers.0.mlp.up_proj"]
    assert (untrained.norm_b, untrained.norm_update, untrained.effective_rank) == (0.0, 0.0, 0.0)
    assert untrained.norm_a > 0
