"""What is said to flash attention 4 (the package flash-attn-4), by a twin of it that computes the definition."""

import importlib.util
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

from core.kernels.attention import attention, visible
from core.kernels.attention.flash_four import NAMES, FlashFour, package
from core.kernels.attention.fused import KERNELS, Plain
from core.kernels.attention.kernel import KernelNotice
from tests.core.kernels.attention_inputs import Inputs, documents, drawn, walked


class Twin(ModuleType):
    """Takes what the package takes, and nothing else; q, k and v are [b, s, h, d], or [t, h, d] with documents."""

    def __init__(self) -> None:
        super().__init__("flash_attn.cute.interface")
        self.taken: list[tuple[torch.Tensor, ...]] = []
        self.error: Exception | None = None

    def _attend(self, q, k, v, scale, causal, left, right, starts, longest):
        assert (starts is None) is (longest is None) is (q.dim() == 4)
        assert causal is (left is None) and right == (None if causal else 0)
        numbers = None
        if starts is not None:
            assert starts.dtype == torch.int32 and longest >= (starts[1:] - starts[:-1]).max()
            q, k, v = (each[None] for each in (q, k, v))
            numbers = torch.bucketize(torch.arange(q.shape[1]), starts[1:].long(), right=True)[None]
        window = None if left is None else left + 1
        seen = visible(q.shape[1], window=window, documents=numbers)
        out = attention(*(each.transpose(1, 2) for each in (q, k, v)), seen, scale).transpose(1, 2)
        return out.contiguous() if starts is None else out[0].contiguous()

    def _flash_attn_fwd(
        self, q, k, v, *, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
        softmax_scale=None, causal=False, window_size_left=None, window_size_right=None, return_lse=False,
    ):  # fmt: skip
        if self.error:
            raise self.error
        assert return_lse and cu_seqlens_q is cu_seqlens_k and max_seqlen_q == max_seqlen_k
        out = self._attend(
            q, k, v, softmax_scale, causal, window_size_left, window_size_right, cu_seqlens_q, max_seqlen_q
        )
        self.taken.append((q, k, v))
        self.sums, self.out = torch.empty(0), out
        return out, self.sums, None, None, None

    def _flash_attn_bwd(
        self, q, k, v, out, dout, lse, softmax_scale=None, causal=False, *, window_size_left=None,
        window_size_right=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
    ):  # fmt: skip
        assert lse is self.sums and torch.equal(out, self.out) and out.shape == dout.shape
        assert cu_seqlens_q is cu_seqlens_k and max_seqlen_q == max_seqlen_k
        self.taken.append((q, k, v, out, dout))
        said = softmax_scale, causal, window_size_left, window_size_right, cu_seqlens_q, max_seqlen_q
        with torch.enable_grad():
            parts = [each.detach().requires_grad_() for each in (q, k, v)]
            grads = torch.autograd.grad(self._attend(*parts, *said), parts, dout)
        return *(each.contiguous() for each in grads), None


def install(monkeypatch: pytest.MonkeyPatch, interface: ModuleType | None) -> None:
    """Let the package be found; None says that it is not there."""
    cute = ModuleType("flash_attn.cute")
    cute.interface = interface  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute if interface else None)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Look for the package anew, and afterwards too."""
    package.cache_clear()
    yield
    package.cache_clear()


@pytest.fixture
def twin(monkeypatch: pytest.MonkeyPatch, fresh: None) -> Twin:
    found = Twin()
    install(monkeypatch, found)
    return found


@pytest.fixture
def on_hopper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))


def on_the_cpu(inputs: Inputs) -> Inputs:
    return Inputs(*(each.cpu() for each in inputs))


@pytest.mark.usefixtures("twin")
@pytest.mark.parametrize("window", [None, 1, 20, 63, 1000])
@pytest.mark.parametrize("with_documents", [False, True], ids=["rows", "documents"])
@pytest.mark.parametrize(("h", "g"), [(4, 2), (6, 1)])
def test_what_it_is_told_is_the_definition(h, g, with_documents, window):
    inputs = on_the_cpu(drawn(h=h, g=g))
    held = documents(longest=99) if with_documents else None
    held = held and held._replace(starts=held.starts.cpu())
    ours, exact = (walked(kernel, inputs, window, held) for kernel in (FlashFour(), Plain()))
    for found, truth in zip(ours, exact, strict=True):
        assert found.shape == truth.shape
        torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("with_documents", [False, True], ids=["rows", "documents"])
def test_nothing_is_copied_and_results_lie_token_by_token(twin, with_documents):
    inputs = on_the_cpu(drawn())
    held = documents() if with_documents else None
    held = held and held._replace(starts=held.starts.cpu())
    found = walked(FlashFour(), inputs, None, held)
    q, k, v, out, dout = twin.taken[1]
    shape = (126, 4, 16) if with_documents else (2, 63, 4, 16)
    assert q.shape == out.shape == dout.shape == shape
    assert [each.data_ptr() for each in (q, k, v, dout)] == [each.data_ptr() for each in inputs]
    assert out.data_ptr() == found[0].data_ptr()
    assert all(each.transpose(1, 2).is_contiguous() for each in found)


@pytest.mark.usefixtures("twin", "on_hopper")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d", [64, 72, 80, 96, 128, 192, 256])
def test_it_fits_where_it_was_found_to_be_right(d, dtype):
    q = torch.empty(1, 2, 257, d, dtype=dtype)
    is_right = d in (64, 128, 256) and dtype.itemsize == 2
    for window in (None, 2):
        for held in (None, documents((0, 257))):
            assert FlashFour().fits(q, q, window, held) is is_right


Q = torch.empty(1, 2, 300, 64, dtype=torch.bfloat16)


@pytest.mark.usefixtures("twin", "on_hopper")
def test_short_rows_and_short_documents_alone_are_left_to_others():
    assert not FlashFour().fits(Q[:, :, :256], Q, None, None)
    assert not FlashFour().fits(Q, Q, None, documents((0, 100, 200, 300)))
    assert FlashFour().fits(Q, Q, None, documents((0, 3, 300)))


@pytest.mark.usefixtures("twin", "on_hopper")
def test_who_asks_for_the_same_bits_every_time_does_not_get_it():
    torch.use_deterministic_algorithms(True)
    try:
        assert not FlashFour().fits(Q, Q, None, None)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("twin", "on_hopper")
@pytest.mark.parametrize("found", [(8, 9), (10, 0), (12, 0)])
def test_it_fits_no_other_gpu(monkeypatch, found):
    assert FlashFour().fits(Q, Q, None, None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: found)
    assert not FlashFour().fits(Q, Q, None, None)


@pytest.mark.usefixtures("twin", "on_hopper")
def test_amd_s_ninth_generation_is_not_hopper(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert not FlashFour().fits(Q, Q, None, None)


@pytest.mark.usefixtures("fresh", "on_hopper")
@pytest.mark.parametrize("missing", NAMES)
def test_it_does_not_fit_without_what_it_calls(monkeypatch, missing):
    install(monkeypatch, None)
    assert not FlashFour().fits(Q, Q, None, None)
    package.cache_clear()
    other = ModuleType("flash_attn.cute.interface")
    for name in set(NAMES) - {missing}:
        setattr(other, name, print)
    install(monkeypatch, other)
    with pytest.warns(KernelNotice, match=f"installed and not used: it has no {missing}"):
        assert not FlashFour().fits(Q, Q, None, None)


@pytest.mark.usefixtures("fresh", "on_hopper")
@pytest.mark.parametrize("error", [ImportError, RuntimeError, AttributeError])
def test_a_package_that_does_not_load_is_none(monkeypatch, tmp_path, error):
    folder = tmp_path / "flash_attn" / "cute"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").touch()
    (folder / "__init__.py").write_text(f"raise {error.__name__}('no driver')\n")
    monkeypatch.syspath_prepend(tmp_path)
    # Set first, so that what the import leaves behind is gone afterwards.
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    for name in [each for each in sys.modules if each.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.util.find_spec("flash_attn").origin == str(folder.parent / "__init__.py")
    with pytest.warns(KernelNotice, match=f"{error.__name__}: no driver"):
        assert not FlashFour().fits(Q, Q, None, None)
    assert not FlashFour().fits(Q, Q, None, None), "said once"


@pytest.mark.parametrize("error", [AssertionError("no kernel"), TypeError("other words"), KeyError("d")])
def test_whatever_it_raises_says_that_there_is_no_kernel(twin, error):
    twin.error = error
    with pytest.raises(RuntimeError, match=f"flash-attn-4: {type(error).__name__}: .*") as found:
        walked(FlashFour(), drawn())
    assert found.value.__cause__ is error


def test_memory_that_ran_out_is_said_as_such(twin):
    twin.error = torch.OutOfMemoryError("no room")
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        walked(FlashFour(), drawn())


def test_only_pytorchs_own_are_trusted():
    assert [(each.name, each.is_trusted) for each in (*KERNELS, Plain())] == [
        ("cudnn", True), ("flash4", False), ("flash", True), ("plain", True)
    ]  # fmt: skip


def test_the_twin_takes_nothing_that_the_package_does_not():
    """Where it is installed."""
    try:
        real = package()
    finally:
        package.cache_clear()
    if real is None:
        pytest.skip("flash-attn-4 is not installed")
    for name in NAMES:
        theirs = inspect.signature(getattr(real, name)).parameters
        ours = list(inspect.signature(getattr(Twin(), name)).parameters)
        assert set(ours) <= set(theirs) and ours[:3] == ["q", "k", "v"]
        assert name == NAMES[0] or list(theirs)[:6] == ours[:6]
