"""What of a GPU's memory is counted as free."""

import pytest
import torch

from core.models.fused.gpu import unheld

GPU = torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        # 1000 free elsewhere, 20 held back by the allocator and unused, 4 % of 2000 in reserve.
        (1.0, 1000 + 20 - 80),
        # Told to stay within 200, of which 50 are taken: no more than 150 are free, whoever else has left some.
        (0.1, 150 + 20 - 8),
    ],
)
def test_a_process_plans_with_what_it_may_take(share: float, expected: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 2000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 50)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 30)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda device: share)
    assert unheld(GPU) == expected
