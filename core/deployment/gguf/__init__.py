"""Writes Hugging Face checkpoints as GGUF files."""

from core.deployment.gguf.convert import write_gguf

__all__ = ["write_gguf"]
