"""Main memory that tensors are sent to without a GPU."""

import pytest
import torch

from core.models.fused import backbone
from tests.core.models.fused.streams import MAIN, Ashore, late


@pytest.fixture
def ashore(monkeypatch: pytest.MonkeyPatch) -> type[Ashore]:
    """Let fused models keep tensors in main memory, without a GPU."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: MAIN)
    monkeypatch.setattr(torch.cuda, "stream", late)
    monkeypatch.setattr(backbone, "Store", Ashore)
    monkeypatch.setattr(Ashore, "made", [])
    return Ashore
