"""The comparison notices what it must notice."""

import math
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from core.deployment.llama import LlamaRuntime
from tests.families.logits import compare_logits


def test_equal_models_agree(checkpoint: Path, gguf: Path) -> None:
    report = compare_logits(checkpoint, gguf, tokens=40)
    assert report.max_abs < 1e-4
    assert 0 <= report.kl < 1e-9
    assert report.argmax_agreement == 1
    assert report.tokens == 40


@pytest.mark.parametrize("name", ["blk.0.attn_k.weight", "output_norm.weight", "blk.1.ffn_norm.weight"])
def test_one_wrong_tensor_shows(name: str, tmp_path: Path, checkpoint: Path, gguf: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(gguf.read_bytes())
    tensor = next(tensor for tensor in GGUFReader(broken, "r+").tensors if tensor.name == name)
    tensor.data[:] = tensor.data[..., ::-1].copy()
    report = compare_logits(checkpoint, broken, tokens=40)
    assert report.max_abs > 1e-2
    assert report.kl > 1e-6


def test_the_divergence_is_that_of_its_definition(tmp_path: Path, checkpoint: Path, gguf: Path) -> None:
    # Scaling the last norm scales every logit, so the distances follow from the exact logits alone.
    broken = tmp_path / "hot.gguf"
    broken.write_bytes(gguf.read_bytes())
    tensor = next(
        tensor for tensor in GGUFReader(broken, "r+").tensors if tensor.name == "output_norm.weight"
    )
    tensor.data[:] *= 2
    with LlamaRuntime(gguf, context_length=32, exact=True) as runtime:
        ids = [int(n) for n in np.random.default_rng(3).integers(0, runtime.vocabulary, 10)]
        rows = runtime.logits(ids).astype(float)
    wanted = []
    for row in rows:
        p = [math.exp(x) for x in row]
        q = [math.exp(2 * x) for x in row]
        total_p, total_q = sum(p), sum(q)
        wanted.append(
            sum(a / total_p * math.log((a / total_p) / (b / total_q)) for a, b in zip(p, q, strict=True))
        )
    report = compare_logits(checkpoint, broken, tokens=10, seed=3)
    assert report.kl == pytest.approx(np.mean(wanted), rel=1e-4)
    assert report.max_abs == pytest.approx(np.abs(rows).max(), rel=1e-3)
    assert report.argmax_agreement == 1


def test_given_sequences_are_compared_besides_the_random_ones(checkpoint: Path, gguf: Path) -> None:
    given = [[5, 6, 7], list(range(30))]
    assert compare_logits(checkpoint, gguf, tokens=10, sequences=given).tokens == 43
    report = compare_logits(checkpoint, gguf, tokens=0, sequences=given)
    assert report.tokens == 33
    assert report.max_abs < 1e-4
    with pytest.raises(ValueError, match="positions"):
        compare_logits(checkpoint, gguf, tokens=0)
