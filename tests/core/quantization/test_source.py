"""Which 16-bit type keeps every weight: the boundary of half precision from both sides."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from core.errors import ModelError
from core.quantization.source import LARGEST_F16, sixteen_bit_type


def stored(folder: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("value", "kind"),
    [(LARGEST_F16, "f16"), (-LARGEST_F16, "f16"), (65_536.0, "bf16"), (-1e30, "bf16"), (0.0, "f16")],
)
def test_f16_as_long_as_every_weight_fits(tmp_path: Path, value: float, kind: str) -> None:
    weights = torch.zeros(4, 4)
    weights[1, 2] = value
    assert sixteen_bit_type(stored(tmp_path, w=weights)) == kind


def test_vectors_stay_float32_in_the_file_and_do_not_count(tmp_path: Path) -> None:
    assert sixteen_bit_type(stored(tmp_path, w=torch.zeros(2, 2), norm=torch.full((4,), 1e9))) == "f16"


def test_bfloat16_weights_beyond_f16_are_seen(tmp_path: Path) -> None:
    assert sixteen_bit_type(stored(tmp_path, w=torch.full((2, 2), 1e6, dtype=torch.bfloat16))) == "bf16"


def test_every_shard_counts(tmp_path: Path) -> None:
    save_file({"a": torch.full((2, 2), 1e6)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(2, 2)}, tmp_path / "model-00002-of-00002.safetensors")
    assert sixteen_bit_type(tmp_path) == "bf16"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float) -> None:
    with pytest.raises(ModelError, match="broken_weight"):
        sixteen_bit_type(stored(tmp_path, broken_weight=torch.tensor([[1.0, value]])))


def test_other_tensors_are_passed_over(tmp_path: Path) -> None:
    assert sixteen_bit_type(stored(tmp_path, ids=torch.full((2, 2), 10**9), w=torch.zeros(0, 4))) == "f16"
