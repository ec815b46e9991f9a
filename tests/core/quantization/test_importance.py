"""The importance matrix is what a PyTorch model shows, and it makes low-bit files better where inputs are uneven."""

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize
from transformers import AutoModelForCausalLM

from core.deployment.gguf import write_gguf
from core.errors import DataError, EngineFailed
from core.quantization import tensor_view
from core.quantization.gguf import quantize_gguf
from core.quantization.importance import Sums, collect_importance, load_importance
from tests.core.deployment.gguf import tiny
from tests.families.logits import compare_logits

NAMES = {
    "q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output", "gate_proj": "ffn_gate",
    "up_proj": "ffn_up", "down_proj": "ffn_down",
}  # fmt: skip


@pytest.fixture(scope="session")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose norms make some inputs thirty times as large as others."""
    folder = tiny.save(tmp_path_factory.mktemp("uneven") / "model", "Llama", tiny.byte_level(), hidden_size=256,
                       intermediate_size=512)  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(folder)
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "layernorm" in name:
                weight.copy_(torch.exp(1.2 * torch.randn(weight.shape, generator=draw)))
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def source(uneven: Path) -> Path:
    path = uneven.parent / "f16.gguf"
    write_gguf(uneven, path, dtype="f16", name="uneven")
    return path


@pytest.fixture(scope="session")
def texts() -> list[list[int]]:
    draw = np.random.default_rng(0)
    return [[int(n) for n in draw.integers(6, 300, 40)] for _ in range(12)]


@pytest.fixture(scope="session")
def measured(source: Path, texts: list[list[int]]) -> Path:
    path = source.parent / "importance.npz"
    assert collect_importance(source, texts, path, threads=1) == 12 * 40
    return path


def test_it_is_the_mean_square_that_pytorch_sees(
    uneven: Path, texts: list[list[int]], measured: Path
) -> None:
    model = AutoModelForCausalLM.from_pretrained(uneven, dtype=torch.float32)
    squares: dict[str, torch.Tensor] = {}

    def listen(name: str):
        def hook(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            seen = inputs[0].detach().double().square().sum(dim=(0, 1))
            squares[name] = squares.get(name, 0) + seen

        return hook

    for path, module in model.named_modules():
        if path.rsplit(".", 1)[-1] in NAMES:
            layer, kind = path.split(".")[2], NAMES[path.rsplit(".", 1)[-1]]
            module.register_forward_pre_hook(listen(f"blk.{layer}.{kind}.weight"))
    with torch.no_grad():
        for ids in texts:
            model(input_ids=torch.tensor([ids]))
    found = load_importance(measured)
    assert set(found) == set(squares)
    for name, total in squares.items():
        wanted = (total / (12 * 40)).numpy()
        assert np.allclose(found[name], wanted, rtol=0.05, atol=0.005 * wanted.max()), name


def test_it_makes_files_of_few_bits_nearer_to_the_model(
    tmp_path: Path, uneven: Path, source: Path, texts: list[list[int]], measured: Path
) -> None:
    plain, weighed = tmp_path / "plain.gguf", tmp_path / "weighed.gguf"
    quantize_gguf(source, plain, "Q4_K_M", threads=1)
    quantize_gguf(source, weighed, "Q4_K_M", threads=1, importance=measured)
    assert plain.stat().st_size == weighed.stat().st_size
    far, near = (
        compare_logits(uneven, path, tokens=0, sequences=texts, context_length=64)
        for path in (plain, weighed)
    )
    assert near.kl < 0.9 * far.kl
    unseen = (compare_logits(uneven, path, tokens=60, seed=99) for path in (plain, weighed))
    far, near = unseen
    assert near.kl < far.kl


def test_it_lowers_the_weighted_error_of_every_matrix(tmp_path: Path, source: Path, measured: Path) -> None:
    plain, weighed = tmp_path / "plain.gguf", tmp_path / "weighed.gguf"
    quantize_gguf(source, plain, "Q5_K_M", threads=1)
    quantize_gguf(source, weighed, "Q5_K_M", threads=1, importance=measured)
    exact, first, second = (
        {t.name: dequantize(t.data, t.tensor_type) for t in GGUFReader(path).tensors}
        for path in (source, plain, weighed)
    )
    importance = load_importance(measured)
    for name, values in importance.items():
        before = (np.square(first[name] - exact[name]) * values).sum()
        after = (np.square(second[name] - exact[name]) * values).sum()
        assert after < before, name


def test_no_texts_are_an_error_with_the_way_out(tmp_path: Path, source: Path) -> None:
    for texts in ([], [[]]):
        with pytest.raises(DataError, match="imatrix: false"):
            collect_importance(source, texts, tmp_path / "x.npz", threads=1)
    assert list(tmp_path.iterdir()) == []


def test_a_broken_file_is_an_error_and_leaves_nothing(tmp_path: Path, source: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(source.read_bytes()[:5000])
    with pytest.raises(EngineFailed, match=r"how strongly texts use the inputs of broken\.gguf"):
        collect_importance(broken, [[1, 2, 3]], tmp_path / "x.npz", threads=1)
    assert [path.name for path in tmp_path.iterdir()] == ["broken.gguf"]


def test_memory_is_laid_out_as_it_is_read() -> None:
    assert tensor_view.multiplication() is not None


def test_another_layout_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shifted(ctypes.Structure):
        """The same fields, and one more among them."""

    at = [name for name, _ in tensor_view.Tensor._fields_].index("op")
    fields = [*tensor_view.Tensor._fields_[:at], ("news", ctypes.c_int64), *tensor_view.Tensor._fields_[at:]]
    Shifted._fields_ = [(n, ctypes.POINTER(Shifted) * 10 if n == "src" else t) for n, t in fields]
    monkeypatch.setattr(tensor_view, "Tensor", Shifted)
    assert tensor_view.multiplication() is None


def test_an_error_inside_the_callback_ends_the_computation_and_is_kept() -> None:
    empty = tensor_view.Tensor(op=7)
    sums = Sums(product=7)
    assert sums.hear(ctypes.addressof(empty), True, None) is False
    assert isinstance(sums.error, ValueError)


def test_other_operations_are_let_through_unheard() -> None:
    other = tensor_view.Tensor(op=8)
    sums = Sums(product=7)
    assert sums.hear(ctypes.addressof(other), True, None) is False
    assert sums.hear(ctypes.addressof(other), False, None) is True
    assert sums.error is None
