"""Lets a training process that finds this folder on PYTHONPATH believe in a GPU; no other process."""

import sys

if "core.training.worker" in sys.orig_argv:
    import torch

    torch.cuda.is_available = lambda: True
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    # Seeding and emptying a cache would look for the GPU that is not there.
    torch.cuda.manual_seed_all = lambda seed: None
    torch.cuda.empty_cache = lambda: None
