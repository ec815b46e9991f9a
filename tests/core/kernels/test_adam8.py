"""AdamW with moments of 8 bits: the definition takes bitsandbytes' steps, and one launch takes the definition's."""

import importlib
import math

import pytest
import torch
from bitsandbytes import functional

from core.kernels.adam8 import Adam8, Codes, Rates, Slot, reference
from core.kernels.adam8.reference import quantize, thresholds
from tests.core.kernels.conftest import DEVICE, assert_no_worse

SIZES = [1, 255, 256, 257, 1000, 4097]
RATES = Rates(lr=1e-2, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.1, step=3)
TYPES = [
    (torch.float32, torch.float32),
    (torch.float32, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]


def codes():
    return Codes(*(functional.create_dynamic_map(signed=signed).to(DEVICE) for signed in (True, False)))


@pytest.fixture(params=["reference", "fused"])
def update(request):
    """Both paths behind one signature."""
    module = importlib.import_module(f"core.kernels.adam8.{request.param}")
    if request.param == "fused":
        return lambda slots, gradients, rates: module.Launch(codes()).update(slots, gradients, rates)
    return lambda slots, gradients, rates: module.update(slots, gradients, codes(), rates)


def slot(size, dtype=torch.float32, seed=0, off=0):
    """A parameter with moments in the middle of a training; every tensor lies in a larger one."""
    generator = torch.Generator().manual_seed(seed + size)
    blocks = -(-size // 256)
    parameter = torch.randn(size, generator=generator).mul(0.01).to(dtype)
    m, v = (torch.randint(256, (size,), generator=generator).to(torch.uint8) for _ in range(2))
    m_scale = torch.rand(blocks, generator=generator) * 0.01
    v_scale = m_scale.square() * (1.0 + torch.rand(blocks, generator=generator))
    return Slot(*(apart(each, off) for each in (parameter, m, v, m_scale, v_scale)))


def gradient(size, dtype=torch.float32, seed=1, off=0):
    generator = torch.Generator().manual_seed(seed + size)
    return apart(torch.randn(size, generator=generator).mul(0.01).to(dtype), off)


def apart(values, off=0):
    """Put numbers into a larger tensor of other numbers; ``off`` moves them away from round addresses."""
    buffer = torch.full((values.numel() + 64,), 77, dtype=values.dtype, device=DEVICE)
    return buffer[16 + off :][: values.numel()].copy_(values)


def margins_untouched(view):
    buffer, first = view._base, view.storage_offset()
    return bool((buffer[:first] == 77).all() and (buffer[first + view.numel() :] == 77).all())


def copied(original):
    return Slot(*(each.clone() for each in original))


def widened(original):
    return copied(original)._replace(parameter=original.parameter.double())


def fresh(size, dtype=torch.float32):
    """The state of a parameter before its first step, as bitsandbytes makes it."""
    blocks = -(-size // 256)
    empty = (torch.zeros(size, dtype=torch.uint8), torch.zeros(size, dtype=torch.uint8))
    scales = torch.zeros(blocks), torch.zeros(blocks)
    parameter = torch.randn(size, generator=torch.Generator().manual_seed(size)).to(dtype)
    return Slot(*(each.to(DEVICE) for each in (parameter, *empty, *scales)))


def theirs(state, its_gradient, rates):
    """Take bitsandbytes' own step, in place."""
    own = codes()
    functional.optimizer_update_8bit_blockwise(
        "adam", its_gradient, state.parameter, state.m, state.v, rates.beta1, rates.beta2, 0.0, 0.0, rates.eps,
        rates.step, rates.lr, own.m, own.v, state.m_scale, state.v_scale, rates.weight_decay,
    )  # fmt: skip


def moments(state):
    """Unpack both moments."""
    own = codes()
    scales = (s.repeat_interleave(256)[: state.m.numel()] for s in (state.m_scale, state.v_scale))
    return [code[packed.int()] * s for code, packed, s in zip(own, (state.m, state.v), scales, strict=True)]


def assert_same_step(ours, other, limit):
    """Parameters agree to rounding; few codes differ, and no moment by more than a code's distance to the next."""
    largest = other.parameter.abs().max().item()
    assert (ours.parameter - other.parameter).abs().max().item() <= limit * max(largest, 1.0)
    for mine, its in ((ours.m_scale, other.m_scale), (ours.v_scale, other.v_scale)):
        torch.testing.assert_close(mine, its, rtol=5e-5 if DEVICE.type == "cuda" else 1e-6, atol=0.0)
    pairs = ((ours.m, other.m, other.m_scale), (ours.v, other.v, other.v_scale))
    for (mine, its, scale), code in zip(pairs, codes(), strict=True):
        told = scale.repeat_interleave(256)[: mine.numel()] > 0
        mine, its = mine[told].int(), its[told].int()
        gap = torch.maximum(code.diff(append=code[-1:]), code.diff(prepend=code[:1]))
        # Next to zero codes are closer than the rounding of a sum; and on the CPU bitsandbytes finds the nearest
        # code to 3e-5 only (test_a_number_gets_the_nearest_code has ours).
        rough = 1e-6 if DEVICE.type == "cuda" else 3.1e-5
        assert ((code[mine] - code[its]).abs() <= 1.001 * gap[its] + rough).all()
        assert (mine != its).sum() <= 0.05 * mine.numel()


@pytest.mark.parametrize("size", [1280, 2001])
def test_any_step_of_a_training_may_be_bitsandbytes_or_ours(update, size):
    other = fresh(size)
    for number in range(1, 7):
        rates = RATES._replace(step=number, lr=1e-3 * number, weight_decay=0.1 * (number % 2))
        its_gradient = gradient(size, seed=number).clone()
        ours = copied(other)
        update([ours], [its_gradient], rates)
        theirs(other, its_gradient, rates)
        # Their CUDA kernel takes powers of the betas with few digits.
        assert_same_step(ours, other, 2e-6 if DEVICE.type == "cuda" else 2e-7)


def test_trainings_stay_together_over_many_steps():
    ours, other = fresh(4096), fresh(4096)
    before = other.parameter.clone()
    for number in range(1, 41):
        rates, its_gradient = RATES._replace(step=number), gradient(4096, seed=number).clone()
        Adam8(codes()).update([ours], [its_gradient], rates)
        theirs(other, its_gradient, rates)
    travelled = (other.parameter - before).norm()
    # A moment that another code was chosen for stays different for a while.
    assert (ours.parameter - other.parameter).norm() <= 1e-2 * travelled


def test_a_training_follows_adamw_in_32_bits_to_the_error_of_8(update):
    ours = fresh(1000)
    exact = torch.nn.Parameter(ours.parameter.double().clone())
    before = exact.detach().clone()
    adamw = torch.optim.AdamW([exact], lr=1e-2, weight_decay=0.1)
    for number in range(1, 11):
        its_gradient = gradient(1000, seed=number).clone()
        exact.grad = its_gradient.double()
        adamw.step()
        update([ours], [its_gradient], RATES._replace(step=number))
    error = (ours.parameter - exact.detach()).norm() / (exact.detach() - before).norm()
    # 0.02: a code of a middling moment is 1 to 2 % away.
    assert error < 0.02


def test_a_first_step_is_adamws_but_for_rounding(update):
    """Before the first step the moments are zero, which 8 bits hold exactly."""
    ours = fresh(1000)
    exact = torch.nn.Parameter(ours.parameter.double().clone())
    adamw = torch.optim.AdamW([exact], lr=1e-2, weight_decay=0.1)
    its_gradient = gradient(1000).clone()
    exact.grad = its_gradient.double()
    adamw.step()
    update([ours], [its_gradient], RATES._replace(step=1))
    torch.testing.assert_close(ours.parameter.double(), exact.detach(), rtol=0.0, atol=3e-7)


@pytest.mark.parametrize("off", [0, 1], ids=["round", "odd"])
@pytest.mark.parametrize(("dtype", "its_dtype"), TYPES, ids=str)
def test_one_launch_errs_no_more_than_the_definition(dtype, its_dtype, off):
    fused = importlib.import_module("core.kernels.adam8.fused")
    slots = [slot(size, dtype, off=off) for size in SIZES]
    gradients = [gradient(size, its_dtype, off=off) for size in SIZES]
    plain, exact = [copied(each) for each in slots], [widened(each) for each in slots]
    reference.update(plain, gradients, codes(), RATES)
    reference.update(exact, gradients, codes(), RATES)
    fused.Launch(codes()).update(slots, gradients, RATES)
    for found, expected, wide in zip(slots, plain, exact, strict=True):
        assert_no_worse(found.parameter, expected.parameter, wide.parameter)
        assert_no_worse(found.m_scale, expected.m_scale, wide.m_scale)
        assert_no_worse(found.v_scale, expected.v_scale, wide.v_scale)
        for mine, its in ((found.m, expected.m), (found.v, expected.v)):
            assert (mine.int() - its.int()).abs().max() <= 1
            assert (mine != its).sum() <= 1e-3 * mine.numel()
        assert all(margins_untouched(each) for each in found)
    assert all(margins_untouched(each) for each in gradients)


@pytest.mark.parametrize("size", [256, 1000])
def test_tensors_of_round_lengths_take_the_wide_loads(size):
    """Lengths and addresses divisible by sixteen, and blocks that end within a program."""
    fused = importlib.import_module("core.kernels.adam8.fused")
    found, its_gradient = slot(size // 16 * 16), gradient(size // 16 * 16)
    plain = copied(found)
    reference.update([plain], [its_gradient], codes(), RATES)
    fused.Launch(codes()).update([found], [its_gradient], RATES)
    assert torch.equal(found.m, plain.m) and torch.equal(found.v, plain.v)
    torch.testing.assert_close(found.parameter, plain.parameter, rtol=1e-6, atol=1e-8)
    assert all(margins_untouched(each) for each in found)


def test_parameters_do_not_touch_each_other(update):
    together, alone = [slot(size) for size in SIZES], [slot(size) for size in SIZES]
    gradients = [gradient(size) for size in SIZES]
    update(together, gradients, RATES)
    for each, its_gradient in zip(alone, gradients, strict=True):
        update([each], [its_gradient], RATES)
    for one, other in zip(together, alone, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_launch_follows_what_moves_comes_and_goes():
    """Gradients in new places, a parameter that moved, moments read anew, another set of parameters."""
    launch = importlib.import_module("core.kernels.adam8.fused").Launch(codes())
    ours, plain = [slot(300), slot(700)], [slot(300), slot(700)]
    kept = []

    def step(number, chosen):
        gradients = [gradient(ours[n].m.numel(), seed=number) for n in chosen]
        kept.append(gradients)
        launch.update([ours[n] for n in chosen], gradients, RATES._replace(step=number))
        reference.update([plain[n] for n in chosen], gradients, codes(), RATES._replace(step=number))
        for mine, its in zip(ours, plain, strict=True):
            assert torch.equal(mine.m, its.m) and torch.equal(mine.v, its.v)
            torch.testing.assert_close(mine.parameter, its.parameter, rtol=1e-5, atol=1e-7)

    step(1, [0, 1])
    step(2, [0, 1])
    left = ours[0].parameter.view(-1)
    as_it_was = left.clone()
    ours[0].parameter.data = as_it_was.clone()
    step(3, [0, 1])
    assert torch.equal(left, as_it_was)
    ours[1] = ours[1]._replace(m=ours[1].m.clone(), v_scale=ours[1].v_scale.clone())
    step(4, [0, 1])
    step(5, [1])
    ours.append(slot(512))
    plain.append(slot(512))
    step(6, [2, 0, 1])


def test_a_gradient_that_is_no_number_leaves_its_parameter_alone(update):
    given = slot(600)
    before, its_gradient = given.parameter.clone(), gradient(600)
    its_gradient[5], its_gradient[300], its_gradient[599] = math.nan, math.inf, -math.inf
    update([given], [its_gradient], RATES)
    bad = [5, 300, 599]
    assert torch.equal(given.parameter[bad], before[bad])
    assert all((moment[bad] == 0).all() for moment in moments(given))
    assert given.parameter.isfinite().all() and given.m_scale.isfinite().all()
    good = torch.ones(600, dtype=torch.bool, device=DEVICE)
    good[bad] = False
    assert (given.parameter[good] != before[good]).all()


def test_a_gradient_of_zeros_only_decays_a_parameter_without_moments(update):
    """The A of an adapter whose B is still zero."""
    given = fresh(300)
    before = given.parameter.clone()
    update([given], [torch.zeros(300, device=DEVICE)], RATES._replace(step=1))
    torch.testing.assert_close(given.parameter, before * (1 - 1e-2 * 0.1))
    assert not given.m_scale.any() and not given.v_scale.any()
    assert all((moment == 0).all() for moment in moments(given))
    update([given], [torch.ones(300, device=DEVICE)], RATES._replace(step=2))
    assert all((moment > 0).all() for moment in moments(given))


def test_moments_fade_where_the_gradient_is_zero(update):
    given = slot(256)
    m, v = moments(given)
    update([given], [torch.zeros(256, device=DEVICE)], RATES)
    torch.testing.assert_close(given.m_scale, 0.9 * m.abs().max()[None])
    torch.testing.assert_close(given.v_scale, 0.999 * v.max()[None])


@pytest.mark.parametrize("signed", [True, False], ids=["m", "v"])
def test_a_number_gets_the_nearest_code(signed):
    code = functional.create_dynamic_map(signed=signed)
    generator = torch.Generator().manual_seed(0)
    amounts = 10 ** (-7 * torch.rand(4, 256, generator=generator))
    x = amounts * (torch.randn(4, 256, generator=generator).sign() if signed else 1)
    x[:, 7] = 1.0
    found, scale = quantize(x * 3.0, code)
    assert torch.equal(scale, torch.full((4,), 3.0))
    distance = (x.double()[..., None] - code.double()).abs()
    chosen = distance.gather(-1, found.long()[..., None])[..., 0]
    keeps_sign = (x < 0) & (found == 126)
    assert (((chosen - distance.amin(-1)) < 1e-7) | keeps_sign).all()


@pytest.mark.parametrize("signed", [True, False], ids=["m", "v"])
def test_every_code_is_its_own_and_half_way_is_the_even_one(signed):
    code = functional.create_dynamic_map(signed=signed)
    starts = thresholds(code)
    assert torch.equal(torch.bucketize(code, starts, right=True), torch.arange(256))
    middle = (code[:-1] + code[1:]) * 0.5
    even = torch.arange(255) + torch.arange(255) % 2
    around_zero = (code[:-1] < 0) & (code[1:] >= 0)
    assert torch.equal(torch.bucketize(middle, starts, right=True)[~around_zero], even[~around_zero])


def test_the_first_moment_never_loses_its_sign(update):
    """Beside a moment a million times as large: the nearest code would be zero."""
    given = fresh(256)
    its_gradient = torch.full((256,), -1e-9, device=DEVICE)
    its_gradient[0], its_gradient[128:] = 1.0, 1e-9
    update([given], [its_gradient], RATES._replace(step=1))
    m, _ = moments(given)
    assert (m[1:128] < 0).all()
    assert (m[128:] >= 0).all()


def test_nothing_to_update_is_no_error():
    Adam8(codes()).update([], [], RATES)


def test_parameters_in_64_bits_are_updated_by_the_definition():
    wide, plain = widened(slot(300)), widened(slot(300))
    Adam8(codes()).update([wide], [gradient(300).double()], RATES)
    reference.update([plain], [gradient(300).double()], codes(), RATES)
    assert wide.parameter.dtype == torch.float64
    assert all(torch.equal(a, b) for a, b in zip(wide, plain, strict=True))
