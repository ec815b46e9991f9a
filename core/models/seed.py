"""Every generator seeded together, from a run seed and a step."""

import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and PyTorch on every device."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def seed_step(seed: int, step: int) -> None:
    """Seed for one optimizer step, so that resuming at any step draws the same dropout."""
    seed_everything((seed * 1_000_003 + step) % 2**63)
