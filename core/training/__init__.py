"""One training loop; supervised tuning and pretraining as step functions on it."""
