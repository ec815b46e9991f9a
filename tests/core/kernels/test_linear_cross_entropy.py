"""The loss of the output layer and its gradients, against PyTorch's cross-entropy in float64."""

import pytest
import torch
from torch.nn import functional

from core.kernels import linear_cross_entropy as room
from core.kernels.linear_cross_entropy import linear_cross_entropy, summed_linear_cross_entropy
from core.kernels.linear_cross_entropy.reference import tiles
from tests.core.kernels.conftest import DEVICE

OPTIONS = [
    {},
    {"softcap": 3.0},
    {"softcap": 30.0},
    {"scale": 0.3},
    {"softcap": 2.0, "scale": 1.7},
]


@pytest.fixture(autouse=True, params=["reference", "fused"])
def _path(request, monkeypatch):
    """Send every call of a test down one path; on the CPU the kernels are interpreted."""
    monkeypatch.setattr(room, "runs_fused", lambda device: request.param == "fused")


def make(n=22, e=24, v=127, dtype=torch.float32, ignored=3, seed=0):
    """Make inputs, a head, classes of which every third is ignored, token weights and a bias."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, e, generator=generator)
    weight = torch.randn(v, e, generator=generator) * e**-0.5 * 2
    targets = torch.randint(0, v, (n,), generator=generator)
    if ignored:
        targets[::ignored] = -100
    weights = torch.rand(n, generator=generator) * 2
    bias = torch.randn(v, generator=generator)
    moved = (hidden.to(dtype), weight.to(dtype), targets, weights, bias.to(dtype))
    return tuple(tensor.to(DEVICE) for tensor in moved)


def plain(
    hidden, weight, targets, dtype, *, bias=None, softcap=None, scale=1.0, weights=None, ignore_index=-100
):
    """Compute loss, d hidden, d weight by PyTorch alone at a precision: logits at once, in at least float32."""
    hidden = hidden.detach().to(dtype).requires_grad_()
    weight = weight.detach().to(dtype).requires_grad_()
    logits = functional.linear(hidden, weight).to(torch.promote_types(dtype, torch.float32))
    logits = (logits + (0 if bias is None else bias)) * scale
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    losses = functional.cross_entropy(logits, targets, ignore_index=ignore_index, reduction="none")
    loss = (losses * (1 if weights is None else weights)).sum()
    loss.backward()
    return loss.detach(), hidden.grad, weight.grad


def error(found, exact):
    return ((found.double() - exact).norm() / exact.norm()).item()


def errs_no_more(found, same, exact, floor):
    """Assert that a result errs at most half more than PyTorch's own at the same precision."""
    assert torch.isfinite(found).all()
    assert error(found, exact) <= 1.5 * error(same, exact) + floor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("v", [63, 1000, *([8200] if torch.cuda.is_available() else [])])
def test_loss_and_gradients_err_no_more_than_pytorch_does(v, options, dtype):
    hidden, weight, targets, weights, bias = make(n=13, v=v, dtype=dtype)
    for token_weights, biased in ((None, None), (weights, None), (weights, bias)):
        extra = {**options, "weights": token_weights, "bias": biased}
        found = linear_cross_entropy(
            hidden, weight, targets, **extra, tile_numbers=6 * v, need_weight_grad=True
        )
        exact = plain(hidden, weight, targets, torch.float64, **extra)
        same = plain(hidden, weight, targets, dtype, **extra)
        assert found.loss.dtype == torch.float32 and found.d_hidden.dtype == dtype
        floor = 5e-7 if dtype == torch.float32 else 2e-4
        for ours, theirs, truth in zip(found, same, exact, strict=True):
            errs_no_more(ours, theirs, truth, floor)


@pytest.mark.parametrize("tile_numbers", [1, 127, 127 * 7, 127 * 21, 1 << 28])
def test_the_size_of_the_tiles_changes_nothing_but_rounding(tile_numbers):
    hidden, weight, targets, weights, _ = make()
    found = linear_cross_entropy(
        hidden, weight, targets, weights=weights, tile_numbers=tile_numbers, need_weight_grad=True
    )
    exact = plain(hidden, weight, targets, torch.float64, weights=weights)
    for ours, truth in zip(found, exact, strict=True):
        assert error(ours, truth) < 1e-6


def test_tiles_cover_every_row_once_and_keep_to_their_bound():
    assert tiles(300, 10, 1300) == [(0, 128), (128, 256), (256, 300)]
    assert tiles(300, 10, 1000) == [(0, 100), (100, 200), (200, 300)]
    assert tiles(3, 10, 1) == [(0, 1), (1, 2), (2, 3)]
    assert tiles(0, 10, 100) == []
    assert tiles(16384, 128256, 1 << 28)[0] == (0, 2048)


def test_the_same_call_gives_the_same_bits():
    hidden, weight, targets, _, _ = make(dtype=torch.bfloat16)
    first, second = (linear_cross_entropy(hidden, weight, targets, need_weight_grad=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_one_row_and_one_class_too_few_for_a_tile_are_right():
    for n, v in [(1, 127), (1, 1), (2, 2)]:
        hidden, weight, targets, _, _ = make(n=n, v=v, ignored=0)
        found = linear_cross_entropy(hidden, weight, targets)
        loss, d_hidden, _ = plain(hidden, weight, targets, torch.float64)
        assert torch.allclose(found.loss.double(), loss, atol=1e-6)
        assert torch.allclose(found.d_hidden.double(), d_hidden, atol=1e-6)


def test_no_rows_have_no_loss():
    hidden, weight, targets, _, _ = make()
    found = linear_cross_entropy(hidden[:0], weight, targets[:0], need_weight_grad=True)
    assert found.loss.item() == 0 and found.d_hidden.shape == (0, 24) and not found.d_weight.any()


def test_ignored_rows_add_nothing_and_get_a_gradient_of_zero():
    hidden, weight, targets, _, _ = make()
    kept = targets != -100
    found = linear_cross_entropy(hidden, weight, targets)
    alone = linear_cross_entropy(hidden[kept], weight, targets[kept])
    assert torch.allclose(found.loss, alone.loss)
    assert not found.d_hidden[~kept].any() and found.d_hidden[kept].any(dim=1).all()
    assert torch.allclose(found.d_hidden[kept], alone.d_hidden, atol=1e-6)


def test_another_label_may_stand_for_ignored():
    hidden, weight, targets, _, _ = make(ignored=0)
    targets[::2] = 5
    found = linear_cross_entropy(hidden, weight, targets, ignore_index=5)
    exact = plain(hidden, weight, targets, torch.float64, ignore_index=5)
    assert error(found.loss, exact[0]) < 1e-6 and error(found.d_hidden, exact[1]) < 1e-6


def test_rows_all_ignored_give_zero_not_nan():
    hidden, weight, targets, _, _ = make()
    hidden[3] = float("inf")
    found = linear_cross_entropy(hidden, weight, torch.full_like(targets, -100))
    assert found.loss.item() == 0
    assert torch.equal(found.d_hidden, torch.zeros_like(hidden))


def test_a_weight_of_zero_silences_a_token_whatever_its_logits_are():
    hidden, weight, targets, weights, _ = make(ignored=0)
    hidden[4] = float("inf")
    weights[4] = 0.0
    found = linear_cross_entropy(hidden, weight, targets, weights=weights)
    assert torch.isfinite(found.loss) and not found.d_hidden[4].any()
    assert torch.isfinite(found.d_hidden).all()


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_logits_far_from_zero_keep_their_differences(shift):
    """A common offset changes no probability; exponentials of the raw logits would overflow."""
    hidden, weight, targets, _, _ = make(v=63)
    coarse = (weight * 64).round() / 64
    hidden = (hidden * 64).round() / 64
    bias = torch.full((63,), shift, device=DEVICE)
    # Multiples of 1/4096 survive the sum with 1e4 to within float32's spacing there, 1/1024.
    found = linear_cross_entropy(hidden, coarse, targets, bias=bias)
    exact = plain(hidden, coarse, targets, torch.float64)
    assert error(found.loss, exact[0]) < 1e-3 and error(found.d_hidden, exact[1]) < 2e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_confident_row_keeps_its_small_loss_and_gradient(dtype, request):
    """A margin of 20 nats: the target's probability rounds to 1, its complement (2e-9) must not round to 0."""
    hidden = torch.zeros(2, 8, dtype=dtype, device=DEVICE)
    hidden[:, 0] = 1.0
    weight = torch.zeros(4, 8, dtype=dtype, device=DEVICE)
    weight[1, 0] = 20.0
    weight[:, 1] = torch.arange(4, device=DEVICE)
    targets = torch.tensor([1, 2], device=DEVICE)
    found = linear_cross_entropy(hidden, weight, targets)
    exact = plain(hidden, weight, targets, torch.float64)
    assert torch.isfinite(found.d_hidden).all()
    assert error(found.loss, exact[0]) < 1e-6 and error(found.d_hidden, exact[1]) < 1e-2
    if "fused" in request.node.name:
        alone = linear_cross_entropy(hidden[:1], weight, targets[:1])
        truth = plain(hidden[:1], weight, targets[:1], torch.float64)
        assert error(alone.loss, truth[0]) < 1e-5 and error(alone.d_hidden, truth[1]) < 1e-2


def test_a_bound_far_above_the_logits_changes_nothing():
    """Of 1 - exp(-x) for a tiny x only noise would be left."""
    hidden, weight, targets, _, _ = make()
    found = linear_cross_entropy(hidden, weight, targets, softcap=1e5)
    exact = plain(hidden, weight, targets, torch.float64)
    assert error(found.loss, exact[0]) < 1e-6 and error(found.d_hidden, exact[1]) < 2e-6


def test_a_class_that_does_not_exist_is_never_silent(request):
    hidden, weight, targets, _, _ = make()
    for wrong in (127, -1):
        targets[1] = wrong
        if "fused" in request.node.name:
            assert linear_cross_entropy(hidden, weight, targets).loss.isnan()
        elif DEVICE.type == "cpu":
            with pytest.raises(IndexError):
                linear_cross_entropy(hidden, weight, targets)


def test_neighbouring_memory_is_left_alone_and_rows_may_lie_apart():
    hidden, weight, targets, _, _ = make()
    buffer = torch.full((22, 40), float("nan"), device=DEVICE)
    buffer[:, 8:32] = hidden
    view = buffer[:, 8:32]
    found, dense = (linear_cross_entropy(x, weight, targets, tile_numbers=127 * 9) for x in (view, hidden))
    assert torch.allclose(found.loss, dense.loss) and torch.allclose(
        found.d_hidden, dense.d_hidden, atol=1e-6
    )
    assert buffer[:, :8].isnan().all() and buffer[:, 32:].isnan().all() and torch.equal(view, hidden)


def test_targets_and_weights_may_be_strided():
    hidden, weight, targets, weights, _ = make()
    pairs = torch.stack((targets, torch.zeros_like(targets)), dim=1)
    doubled = torch.stack((weights, torch.zeros_like(weights)), dim=1)
    found = linear_cross_entropy(hidden, weight, pairs[:, 0], weights=doubled[:, 0])
    dense = linear_cross_entropy(hidden, weight, targets, weights=weights)
    assert torch.equal(found.loss, dense.loss) and torch.equal(found.d_hidden, dense.d_hidden)


def test_without_need_of_gradients_none_are_made_and_the_loss_is_the_same():
    hidden, weight, targets, _, _ = make()
    found = linear_cross_entropy(hidden, weight, targets, need_grad=False)
    assert found.d_hidden is None and found.d_weight is None
    assert torch.allclose(found.loss, linear_cross_entropy(hidden, weight, targets).loss)


def test_autograd_gets_pytorchs_gradient():
    hidden, weight, targets, weights, bias = make()
    hidden.requires_grad_()
    loss = summed_linear_cross_entropy(
        hidden, weight, targets, bias=bias, softcap=5.0, scale=0.7, weights=weights
    )
    loss.backward()
    exact = plain(hidden, weight, targets, torch.float64, bias=bias, softcap=5.0, scale=0.7, weights=weights)
    assert error(loss.detach(), exact[0]) < 1e-6 and error(hidden.grad, exact[1]) < 1e-6
    assert weight.grad is None


def test_a_loss_times_three_has_gradients_times_three():
    hidden, weight, targets, _, _ = make()
    hidden.requires_grad_()
    (once,) = torch.autograd.grad(summed_linear_cross_entropy(hidden, weight, targets), hidden)
    (thrice,) = torch.autograd.grad(summed_linear_cross_entropy(hidden, weight, targets) * 3, hidden)
    assert torch.allclose(thrice, once * 3)


@pytest.mark.parametrize("shape", [(22, 24), (3, 1500), (0, 8)])
def test_a_gradient_is_scaled_by_a_number_that_is_not_rounded_to_its_type(shape):
    # One over 11,999 lies a fifth of a percent off the next bfloat16; all of a step's gradients would be.
    gradient = (torch.rand(shape, generator=torch.Generator().manual_seed(1)) + 1).to(DEVICE, torch.bfloat16)
    factor, before = torch.tensor(1 / 11_999, device=DEVICE), gradient.clone()
    found = room.scaled(gradient, factor)
    assert torch.equal(found, (gradient.double() * factor.double()).bfloat16())
    assert torch.equal(gradient, before)


@pytest.mark.parametrize(
    ("dtype", "share", "factor"),
    [(torch.bfloat16, 1.0, 1 / 11_999), (torch.float16, 2.0**-10, 65_536.0)],
    ids=str,
)
def test_the_backward_pass_scales_by_a_number_that_is_not_rounded_to_its_type(dtype, share, factor):
    # float16 cannot hold the factor of a scaled loss at all.
    hidden, weight, targets, _, _ = make(dtype=dtype)
    hidden.requires_grad_()
    weights, number = torch.full((22,), share, device=DEVICE), torch.tensor(factor, device=DEVICE)
    loss = summed_linear_cross_entropy(hidden, weight, targets, weights=weights)
    (once,) = torch.autograd.grad(loss, hidden, retain_graph=True)
    (found,) = torch.autograd.grad(loss * number, hidden)
    assert torch.equal(found, (once.double() * number.double()).to(dtype)) and found.isfinite().all()


def test_a_retained_graph_gives_the_same_gradient_again():
    hidden, weight, targets, _, _ = make()
    hidden.requires_grad_()
    weight.requires_grad_()
    loss = summed_linear_cross_entropy(hidden, weight, targets) / 7
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    second = torch.autograd.grad(loss, (hidden, weight))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_without_recording_there_is_no_gradient_work(monkeypatch):
    hidden, weight, targets, _, _ = make()
    hidden.requires_grad_()
    asked = []
    original = room.linear_cross_entropy

    def watched(*args, **kwargs):
        asked.append((kwargs["need_grad"], kwargs["need_weight_grad"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(room, "linear_cross_entropy", watched)
    with torch.no_grad():
        loss = summed_linear_cross_entropy(hidden, weight, targets)
    summed_linear_cross_entropy(hidden, weight, targets)
    summed_linear_cross_entropy(hidden.detach(), weight, targets)
    assert asked == [(False, False), (True, False), (False, False)]
    assert not loss.requires_grad


def test_a_trainable_head_gets_its_gradient_in_its_own_type():
    hidden, weight, targets, weights, _ = make(dtype=torch.bfloat16)
    weight.requires_grad_()
    summed_linear_cross_entropy(hidden, weight, targets, weights=weights, tile_numbers=127 * 11).mul(
        3
    ).backward()
    exact = plain(hidden, weight, targets, torch.float64, weights=weights)
    same = plain(hidden, weight, targets, torch.bfloat16, weights=weights)
    assert weight.grad.dtype == torch.bfloat16
    errs_no_more(weight.grad / 3, same[2], exact[2], 4e-3)


def test_an_embedding_tied_to_the_head_collects_both_gradients():
    _, weight, targets, _, _ = make(ignored=4)
    tokens = torch.arange(22, device=DEVICE) % 19
    tied = weight.clone().requires_grad_()
    summed_linear_cross_entropy(torch.tanh(tied[tokens]), tied, targets).backward()
    exact = weight.double().requires_grad_()
    logits = torch.tanh(exact[tokens]) @ exact.T
    functional.cross_entropy(logits, targets, reduction="sum").backward()
    assert error(tied.grad, exact.grad) < 1e-6


def test_micro_batches_of_any_size_sum_to_the_gradient_of_the_whole():
    hidden, weight, targets, _, _ = make()
    whole = linear_cross_entropy(hidden, weight, targets)
    parts = [linear_cross_entropy(hidden[a:b], weight, targets[a:b]) for a, b in [(0, 3), (3, 4), (4, 22)]]
    assert torch.allclose(sum(part.loss for part in parts), whole.loss, rtol=1e-6)
    assert torch.allclose(torch.cat([part.d_hidden for part in parts]), whole.d_hidden, atol=1e-6)


def test_the_gradient_survives_gradcheck_in_float64():
    hidden, weight, targets, weights, bias = make(n=5, e=4, v=7)
    hidden, weight = (tensor.double().requires_grad_() for tensor in (hidden, weight))

    def loss(hidden, weight):
        return summed_linear_cross_entropy(
            hidden, weight, targets, bias=bias.double(), softcap=4.0, scale=1.3, weights=weights.double()
        )

    assert torch.autograd.gradcheck(loss, (hidden, weight))


@pytest.mark.parametrize("name", ["bias", "weights"])
def test_a_gradient_nobody_computes_is_refused(name):
    hidden, weight, targets, weights, bias = make()
    tensor = {"bias": bias, "weights": weights}[name].requires_grad_()
    with pytest.raises(ValueError, match=name):
        summed_linear_cross_entropy(hidden, weight, targets, **{name: tensor})
