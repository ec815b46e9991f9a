"""Speed and memory of a training run."""

import resource
import sys
from typing import NamedTuple

import torch


class Spent(NamedTuple):
    """What training has cost so far, over all its interrupted parts."""

    tokens: int = 0
    """Tokens read, padding left out."""
    training: float = 0.0
    """Seconds of optimizer steps."""
    total: float = 0.0
    """Seconds of training, validation and saving."""

    @property
    def tokens_per_second(self) -> float:
        """Return the tokens read per second of training; 0 before the first step."""
        return self.tokens / self.training if self.training > 0 else 0.0


def start_peak(device: torch.device) -> None:
    """Count the most memory allocated from now on; what is allocated already counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int:
    """Return the most bytes allocated on a GPU, or the largest resident size of this process."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kilobytes, macOS bytes.
    return largest if sys.platform == "darwin" else largest * 1024
