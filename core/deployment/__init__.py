"""Merge, export, the llama.cpp runtime, the bundle and its documents."""
