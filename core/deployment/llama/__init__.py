"""Runs GGUF files through llama.cpp, in a process of its own."""

from core.deployment.llama.runtime import Completion, LlamaRuntime

__all__ = ["Completion", "LlamaRuntime"]
