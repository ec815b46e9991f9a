"""Attention against PyTorch's own and Hugging Face's masks; on a GPU its kernels against the definition."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.models.llama.modeling_llama import LlamaConfig, eager_attention_forward

from core.kernels.attention import Chooser, Documents, Kernel, attention, visible
from core.kernels.attention.agreement import ALLOWED, disagreement
from core.kernels.attention.flash_four import WIDTHS, FlashFour, is_hopper, package
from core.kernels.attention.fused import (
    GRAIN,
    KERNELS,
    Cudnn,
    Flash,
    Plain,
    evenly,
    flattened,
    numbered,
    window_of,
)
from tests.core.kernels.attention_inputs import STARTS, Inputs, documents, drawn, walked
from tests.core.kernels.conftest import DEVICE, assert_no_worse, relative_error


def by_autograd(attend: Callable[..., torch.Tensor], inputs: Inputs) -> tuple[torch.Tensor, ...]:
    parts = [each.detach().clone().requires_grad_() for each in inputs[:3]]
    out = attend(*parts)
    return out.detach(), *torch.autograd.grad(out, parts, inputs.grad)


def assert_equal_but_for_rounding(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """In float64; a gradient may be zero, and the other's noise."""
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


def masked(seen: torch.Tensor) -> Callable[..., torch.Tensor]:
    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, seen, enable_gqa=True)

    return attend


@pytest.mark.parametrize(("h", "g"), [(4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize("s", [1, 63, 127])
def test_the_definition_equals_pytorch_own_causal_attention(h, g, s):
    inputs = drawn(h=h, g=g, s=s)

    def causal(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

    for ours, theirs in zip(walked(Plain(), inputs), by_autograd(causal, inputs), strict=True):
        assert_equal_but_for_rounding(ours, theirs)


@pytest.mark.parametrize("window", [1, 2, 20, 63, 1000])
@pytest.mark.parametrize("with_documents", [False, True], ids=["rows", "documents"])
def test_windows_and_documents_equal_a_mask_written_out(window, with_documents):
    inputs = drawn()
    seen = torch.zeros(2, 1, 63, 63, dtype=torch.bool, device=DEVICE)
    place = [sum(start <= token for start in STARTS) for token in range(126)]
    for row in range(2):
        for i in range(63):
            for j in range(max(0, i - window + 1), i + 1):
                seen[row, 0, i, j] = not with_documents or place[63 * row + i] == place[63 * row + j]
    held = documents() if with_documents else None
    for ours, theirs in zip(
        walked(Plain(), inputs, window, held), by_autograd(masked(seen), inputs), strict=True
    ):
        assert_equal_but_for_rounding(ours, theirs)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("with_documents", [False, True], ids=["rows", "documents"])
def test_what_is_seen_is_what_hugging_face_lets_a_layer_see(window, with_documents):
    """Documents begin where positions do; one row of them, as its collator packs."""
    starts = (0, 1, 17, 30, 63) if with_documents else (0, 63)
    inputs = drawn(b=1)
    positions = torch.cat([torch.arange(end - start) for start, end in itertools.pairwise(starts)])
    settings: Any = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, hidden_size=64)
    settings._attn_implementation, settings.sliding_window = "eager", window
    make = create_sliding_window_causal_mask if window else create_causal_mask
    mask = make(
        config=settings,
        inputs_embeds=torch.zeros(1, 63, 64, dtype=torch.float64, device=DEVICE),
        attention_mask=None,
        past_key_values=None,
        position_ids=positions[None].to(DEVICE),
    )
    held = documents(starts) if with_documents else None
    seen = visible(63, window=window, documents=numbered(inputs.q, held), device=DEVICE)
    assert torch.equal(mask == 0, seen)
    module = torch.nn.Module()
    module.num_key_value_groups = 2  # type: ignore[assignment]

    def theirs(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        # Its softmax is always of float32.
        return eager_attention_forward(module, q, k, v, mask, scaling=16**-0.5)[0].transpose(1, 2)

    for ours, other in zip(walked(Plain(), inputs, window, held), by_autograd(theirs, inputs), strict=True):
        assert relative_error(ours, other) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_softmax_is_of_float32_at_least(dtype):
    inputs = drawn(dtype=dtype)
    seen = visible(63, device=DEVICE)
    exact = by_autograd(masked(seen), inputs.to(torch.float64))
    same = by_autograd(lambda q, k, v: attention(q, k, v, seen, 0.25), inputs)
    # PyTorch's own rounds scores to 16 bits only in its own plain kernel, as the definition does.
    for ours, rough, truth in zip(walked(Plain(), inputs), same, exact, strict=True):
        assert ours.dtype == dtype
        assert_no_worse(ours, rough, truth)
    assert attention(*inputs[:3], seen, 40.0).isfinite().all()


def test_a_document_knows_nothing_of_another():
    """Neither what comes before in its row, nor in its numbers: not one bit."""
    inputs, held = drawn(dtype=torch.float32), documents()
    before = walked(Plain(), inputs, None, held)
    changed = inputs._replace(k=inputs.k.clone(), v=inputs.v.clone())
    changed.k[0, :, 17:30] += 100.0
    changed.v[0, :, 17:30] *= -3.0
    after = walked(Plain(), changed, None, held)
    for ours, theirs in zip(after, before, strict=True):
        assert not torch.equal(ours[0, :, 17:30], theirs[0, :, 17:30])
        assert torch.equal(ours[0, :, :17], theirs[0, :, :17])
        assert torch.equal(ours[0, :, 30:], theirs[0, :, 30:]) and torch.equal(ours[1], theirs[1])


def test_packed_documents_give_what_they_give_alone():
    inputs, held = drawn(), documents()
    together = walked(Plain(), inputs, None, held)
    for start, end in itertools.pairwise(STARTS):
        row, own = divmod(start, 63)[0], slice(start % 63, start % 63 + end - start)
        alone = walked(Plain(), Inputs(*(each[row : row + 1, :, own] for each in inputs)))
        for ours, theirs in zip(together, alone, strict=True):
            assert_equal_but_for_rounding(ours[row : row + 1, :, own], theirs)


def test_a_token_sees_nothing_of_what_comes_after_it():
    inputs = drawn(dtype=torch.float32)
    changed = inputs._replace(k=inputs.k.clone(), v=inputs.v.clone())
    changed.k[:, :, 40:] += 9.0
    changed.v[:, :, 40:] += 9.0
    one, two = (Plain().forward(*each[:3], 0.25, None, None).out for each in (inputs, changed))
    assert torch.equal(one[:, :, :40], two[:, :, :40]) and not torch.equal(one[:, :, 40:], two[:, :, 40:])


def test_results_lie_token_by_token():
    out = Plain().forward(*drawn()[:3], 0.25, None, None).out
    assert out.transpose(1, 2).is_contiguous()


def test_gradients_need_no_graph_and_leave_none():
    inputs = drawn()
    with torch.no_grad():
        found = walked(Plain(), inputs)
    assert not any(each.requires_grad for each in found)
    assert not any(each.requires_grad for each in inputs)


def test_documents_are_numbered_token_by_token():
    q = torch.empty(2, 1, 4, 8, device=DEVICE)
    held = Documents(torch.tensor([0, 1, 3, 4, 8], dtype=torch.int32, device=DEVICE), 4)
    assert numbered(q, held).tolist() == [[0, 1, 1, 2], [3, 3, 3, 3]]
    assert numbered(q, None) is None


def test_a_document_may_reach_over_the_end_of_a_row():
    """Rows are cut where the batch is cut: tokens of other rows are never seen."""
    q = torch.empty(2, 1, 4, 8, device=DEVICE)
    held = Documents(torch.tensor([0, 3, 8], dtype=torch.int32, device=DEVICE), 5)
    assert numbered(q, held).tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]


def test_rows_are_even_documents():
    starts, longest = evenly(torch.empty(3, 4, 5, 8, device=DEVICE))
    assert starts.tolist() == [0, 5, 10, 15] and starts.dtype == torch.int32 and longest == 5


def test_even_documents_see_what_rows_see():
    inputs = drawn()
    for ours, theirs in zip(
        walked(Plain(), inputs, 9, evenly(inputs.q)), walked(Plain(), inputs, 9), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_a_batch_is_flattened_without_a_copy_where_it_lies_evenly():
    q = drawn(b=2, h=4, g=2, s=5, d=8).q
    assert flattened(q).data_ptr() == q.data_ptr() and flattened(q).shape == (10, 4, 8)
    assert torch.equal(flattened(q)[7], q[1, :, 2])
    assert torch.equal(flattened(q.contiguous()), flattened(q))


def test_a_window_counts_the_token_itself():
    assert window_of(None) == {}
    assert window_of(1) == {"window_size_left": 0, "window_size_right": 0}
    assert window_of(4096)["window_size_left"] == 4095


on_cuda = pytest.mark.skipif(DEVICE.type != "cuda", reason="the kernels run on a GPU alone")
SHAPES = [(4, 4, 64), (8, 2, 64), (8, 2, 80), (8, 1, 128), (4, 2, 128), (4, 1, 256)]


def has_flash_four() -> bool:
    return is_hopper(DEVICE) and package() is not None


def assert_exact(kernel: Kernel, inputs: Inputs, window: int | None, held: Documents | None) -> None:
    exact = walked(Plain(), inputs.to(torch.float64), window, held)
    same = walked(Plain(), inputs, window, held)
    for ours, theirs, truth in zip(walked(kernel, inputs, window, held), same, exact, strict=True):
        if truth.norm() > 1e-6:
            assert_no_worse(ours, theirs, truth)
        else:  # the gradient of a softmax over one token
            assert ours.dtype == theirs.dtype and ours.abs().max() < 1e-2


@on_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("s", [1, 63, 128, 1000])
@pytest.mark.parametrize(("h", "g", "d"), SHAPES)
@pytest.mark.parametrize("kernel", KERNELS, ids=[each.name for each in KERNELS])
def test_the_gpu_errs_no_more_than_the_definition_on_rows(kernel, h, g, d, s, dtype):
    inputs = drawn(h=h, g=g, s=s, d=d, dtype=dtype)
    is_fit = kernel.fits(inputs.q, inputs.k, None, None)
    if isinstance(kernel, FlashFour):
        assert is_fit is (d in WIDTHS and s > GRAIN and has_flash_four())
    else:
        assert is_fit is (s > 1 or kernel.name != "cudnn")
    if not is_fit:
        pytest.skip("it does not compute this, or is not installed")
    assert_exact(kernel, inputs, None, None)


@on_cuda
@pytest.mark.parametrize("window", [None, 1, 17, 63, 5000])
@pytest.mark.parametrize("with_documents", [False, True], ids=["rows", "documents"])
@pytest.mark.parametrize(("h", "g", "d"), SHAPES)
@pytest.mark.parametrize("kernel", KERNELS, ids=[each.name for each in KERNELS])
def test_the_gpu_errs_no_more_in_windows_and_documents(kernel, h, g, d, with_documents, window):
    inputs = drawn(h=h, g=g, s=500, d=d, dtype=torch.bfloat16)
    held = documents((0, 1, 130, 131, 400, 500, 900, 1000)) if with_documents else None
    if not kernel.fits(inputs.q, inputs.k, window, held):
        pytest.skip("it does not compute this, or is not installed")
    assert_exact(kernel, inputs, window, held)


@on_cuda
@pytest.mark.parametrize("window", [None, 1, 17])
@pytest.mark.parametrize("with_documents", [False, True], ids=["rows", "documents"])
@pytest.mark.parametrize(("h", "g", "d"), SHAPES)
@pytest.mark.parametrize("kernel", [FlashFour(), Cudnn()], ids=["flash4", "cudnn"])
def test_right_kernels_agree_far_within_what_is_allowed(kernel, h, g, d, with_documents, window):
    """The widths of flash attention 4 are the right ones: a kernel that errs would be passed over."""
    inputs = drawn(h=h, g=g, s=500, d=d, dtype=torch.bfloat16)
    held = documents((0, 1, 130, 131, 400, 500, 900, 1000)) if with_documents else None
    if not kernel.fits(inputs.q, inputs.k, window, held):
        pytest.skip("it does not compute this, or is not installed")
    assert disagreement(kernel, [Flash()], inputs.q, inputs.k, d**-0.5, window, held) < ALLOWED / 2


@on_cuda
def test_the_longest_document_may_be_said_to_be_longer():
    inputs = drawn(s=500, d=64, dtype=torch.bfloat16)
    starts = (0, 130, 500, 1000)
    for ours, theirs in zip(
        walked(Flash(), inputs, None, documents(starts, 777)),
        walked(Flash(), inputs, None, documents(starts)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@on_cuda
def test_cudnn_leaves_documents_and_narrow_windows_alone():
    inputs = drawn(dtype=torch.bfloat16)
    assert not Cudnn().fits(inputs.q, inputs.k, None, documents())
    assert not Cudnn().fits(inputs.q, inputs.k, 62, None)
    assert Cudnn().fits(inputs.q, inputs.k, 63, None)


@on_cuda
@pytest.mark.filterwarnings("error::core.kernels.attention.kernel.KernelNotice")
def test_the_chooser_measures_on_the_gpu_and_what_it_chose_is_right():
    chooser, inputs = Chooser(), drawn(s=512, d=128, dtype=torch.bfloat16)
    kernel = chooser.choose(*inputs[:3], 128**-0.5, None, None)
    assert kernel in KERNELS
    assert chooser.choose(*inputs[:3], 128**-0.5, None, None) is kernel
    assert_exact(kernel, inputs, None, None)
