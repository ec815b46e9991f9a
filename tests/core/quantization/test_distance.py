"""Distances between logits, against torch's own divergence, added up in pieces."""

import numpy as np
import pytest
import torch

from core.quantization import distance as module
from core.quantization.distance import DistanceSum, log_softmax


def logits(seed: int, rows: int = 7, width: int = 33) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (rows, width)).astype(np.float32)


def test_divergence_is_torchs_over_all_positions() -> None:
    a, b = logits(1), logits(2)
    total = DistanceSum()
    total.add(a[:3], b[:3])
    total.add(a[3:], b[3:])
    found = total.total()
    p, q = (torch.log_softmax(torch.tensor(x, dtype=torch.float64), -1) for x in (a, b))
    wanted = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean").item()
    assert found.kl == pytest.approx(wanted, rel=1e-12)
    assert found.max_abs == pytest.approx(np.abs(a.astype(np.float64) - b).max())
    assert found.argmax_agreement == pytest.approx((a.argmax(-1) == b.argmax(-1)).mean())
    assert found.tokens == 7


def test_small_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = logits(3), logits(4)
    whole, pieces = DistanceSum(), DistanceSum()
    whole.add(a, b)
    monkeypatch.setattr(module, "CELLS", 66)
    pieces.add(a, b)
    assert pieces.total().kl == pytest.approx(whole.total().kl, rel=1e-12)
    assert pieces.total().tokens == whole.total().tokens


def test_a_model_is_at_no_distance_from_itself_and_a_shift_changes_no_distribution() -> None:
    a = logits(5)
    total = DistanceSum()
    total.add(a, a)
    assert total.total().model_dump() == {"max_abs": 0.0, "kl": 0.0, "argmax_agreement": 1.0, "tokens": 7}
    shifted = DistanceSum()
    shifted.add(a, a + 2)
    assert shifted.total().kl == pytest.approx(0, abs=1e-6)
    assert shifted.total().max_abs == pytest.approx(2, abs=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("row", [0, 6])
def test_a_logit_that_is_no_number_gives_no_distance(value: float, row: int) -> None:
    a, b = logits(6), logits(7)
    b[row, 3] = value
    total = DistanceSum()
    with np.errstate(invalid="ignore"):
        total.add(a, b)
    total.add(a, a)
    assert not total.is_finite
    with pytest.raises(ValueError, match="no numbers"):
        total.total()


def test_nothing_compared_is_no_distance_and_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="positions"):
        DistanceSum().total()
    with pytest.raises(ValueError, match="shape"):
        DistanceSum().add(logits(1, width=33), logits(1, width=34))


def test_large_logits_do_not_overflow() -> None:
    assert np.isfinite(log_softmax(np.array([[1e4, -1e4, 0]], dtype=np.float32))).all()
