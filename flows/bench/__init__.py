"""``factory bench``: what this machine does with a training step, ours beside the peers'."""
