"""Where the kernels are tested: on the GPU if there is one, else in Triton's interpreter; and what they are held to."""

import pytest
import torch

from tests.core.kernels.interpreter import round_as_hardware_does

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU the kernels run in Triton's interpreter, which alone would cut numbers off."""
    round_as_hardware_does(monkeypatch)


@pytest.fixture
def device() -> torch.device:
    return DEVICE


def relative_error(found: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the Frobenius norm of the error as a share of the exact value's; NaN if anything is NaN."""
    exact = exact.double()
    return ((found.double() - exact).norm() / exact.norm().clamp_min(1e-300)).item()


def assert_no_worse(
    found: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, slack: float = 1.5, floor: float = 3e-7
) -> None:
    """A kernel may err no more than plain PyTorch does at the same precision.

    The floor is five units in float32's last place: the GPU's quick exponential and division err by two or three.
    """
    assert found.dtype == plain.dtype and found.shape == exact.shape
    error, allowed = relative_error(found, exact), slack * relative_error(plain, exact) + floor
    assert error <= allowed, f"errs by {error:.3g}, allowed {allowed:.3g}"


def poisoned(shape: tuple[int, int], dtype: torch.dtype, stride: int | None = None) -> torch.Tensor:
    """Return a matrix of NaN that is a view of a wider one, so that every row has a margin nobody may touch."""
    buffer = torch.full((shape[0] + 1, stride or shape[1] + 24), float("nan"), dtype=dtype, device=DEVICE)
    return buffer[: shape[0], : shape[1]]


def inside(values: torch.Tensor, stride: int | None = None) -> torch.Tensor:
    """Return a copy that lies in a wider matrix, surrounded by NaN."""
    return poisoned((values.shape[0], values.shape[1]), values.dtype, stride).copy_(values)


def margin_untouched(view: torch.Tensor) -> bool:
    """Tell whether what surrounds a poisoned matrix is still NaN."""
    buffer = view._base
    assert buffer is not None
    return bool(buffer[:, view.shape[1] :].isnan().all() and buffer[view.shape[0] :].isnan().all())


def normal(
    *shape: int, dtype: torch.dtype = torch.float32, seed: int = 0, scale: float = 1.0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator) * scale).to(DEVICE, dtype)
