"""Quantized files are smaller, load, and answer; broken ones are errors, not crashes."""

from pathlib import Path
from typing import get_args

import pytest
from gguf import GGMLQuantizationType, GGUFReader

from core.deployment.llama import LlamaRuntime
from core.errors import EngineFailed, ModelError
from core.quantization.config import GgufType
from core.quantization.gguf import FTYPES, quantize_gguf
from tests.core.deployment.gguf import tiny
from tests.families.logits import compare_logits

MAIN_TYPE = {
    "Q8_0": GGMLQuantizationType.Q8_0,
    "Q6_K": GGMLQuantizationType.Q6_K,
    "Q5_K_M": GGMLQuantizationType.Q5_K,
    "Q4_K_M": GGMLQuantizationType.Q4_K,
    "Q4_0": GGMLQuantizationType.Q4_0,
}
LARGEST_KL = {"Q8_0": 1e-3, "Q6_K": 5e-3, "Q5_K_M": 2e-2, "Q4_K_M": 0.1, "Q4_0": 0.15}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quant") / "model"
    return tiny.wide(folder)


@pytest.fixture(scope="session")
def half(checkpoint: Path) -> Path:
    return tiny.half(checkpoint)


@pytest.mark.parametrize("kind", FTYPES)
def test_quantized_files_are_smaller_and_answer(
    kind: GgufType, tmp_path: Path, checkpoint: Path, half: Path
) -> None:
    target = tmp_path / f"model-{kind}.gguf"
    quantize_gguf(half, target, kind, threads=1)
    assert target.stat().st_size < 0.75 * half.stat().st_size
    types = {tensor.name: tensor.tensor_type for tensor in GGUFReader(target).tensors}
    assert types["blk.0.attn_q.weight"] == MAIN_TYPE[kind]
    assert 0 < compare_logits(checkpoint, target, tokens=32).kl < LARGEST_KL[kind]
    with LlamaRuntime(target, context_length=64) as runtime:
        assert runtime.generate([{"role": "user", "content": "GH₵17?"}], max_new_tokens=8).n_generated > 0


def test_every_setting_is_either_quantized_or_refused(tmp_path: Path, half: Path) -> None:
    assert set(get_args(GgufType)) == {*FTYPES, "f16", "bf16"}
    for kind in ("f16", "bf16"):
        with pytest.raises(ValueError, match="write_gguf"):
            quantize_gguf(half, tmp_path / "x.gguf", kind, threads=1)


def test_what_is_not_gguf_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.bin"
    other.write_bytes(b"PK\x03\x04 something else")
    for source in (other, tmp_path / "missing.gguf"):
        with pytest.raises(ModelError, match="GGUF"):
            quantize_gguf(source, tmp_path / "x.gguf", "Q8_0", threads=1)


def test_a_truncated_file_leaves_an_error_and_the_old_target(tmp_path: Path, half: Path) -> None:
    broken, target = tmp_path / "broken.gguf", tmp_path / "out.gguf"
    broken.write_bytes(half.read_bytes()[: half.stat().st_size // 2])
    target.write_bytes(b"old")
    with pytest.raises(EngineFailed, match="not within the file bounds"):
        quantize_gguf(broken, target, "Q8_0", threads=1)
    assert target.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken.gguf", "out.gguf"]


def test_quantizing_to_something_not_smaller_is_an_error(tmp_path: Path, half: Path) -> None:
    small = tmp_path / "small.gguf"
    quantize_gguf(half, small, "Q4_K_M", threads=1)
    with pytest.raises(EngineFailed):
        quantize_gguf(small, tmp_path / "again.gguf", "Q8_0", threads=1)
    assert not (tmp_path / "again.gguf").exists()
