"""One training step under several systems: the same bytes, the same rows, the same adapter, measured alike."""
