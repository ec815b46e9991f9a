"""Tiny models and tokenizers that tests share; everything is made here, nothing is downloaded."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

# The same examples every time and no deadline, so that a red run means a change and not a busy machine.
# FACTORY_FUZZ=1 looks for new ones.
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.register_profile("new", database=None, deadline=None)
settings.load_profile("new" if os.environ.get("FACTORY_FUZZ") else "same")

TEXTS = [
    "What is 3 + 4? The answer is 7. What is the capital of Ghana? Accra.",
    "Ama buys a pen for GH₵3 and a book for GH₵8. She pays GH₵11.",
    "Maakye means good morning. Ɛte sɛn? Me ho yɛ.",
] * 20


LONGEST = (
    "tests/thimble/",
    "tests/flows/",
    "tests/core/deployment/onnx/test_examine.py",
    "tests/tasks/",
    "tests/core/training/",
    "tests/core/deployment/",
)


def prepare() -> None:
    """Prepare the large libraries, except in the process that only hands tests to workers: it would load them first.

    While this file is imported: the conftest.py of a folder that is named on the command line imports Triton next.
    """
    if "PYTEST_XDIST_WORKER" in os.environ or not any(word.startswith("-n") for word in sys.argv):
        import torch

        # transformers imports Triton, and Triton asks only then whether kernels are to be interpreted, for want of a GPU.
        if not torch.cuda.is_available():
            os.environ.setdefault("TRITON_INTERPRET", "1")
        torch.set_num_threads(1)
    # Each worker's child processes have one core to themselves at most.
    os.environ.setdefault("OMP_NUM_THREADS", "1")


prepare()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Import without looking for garbage, and never look again through what was imported: a fifth of all time."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let workers begin with the files that take longest, so that none is left alone with one at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=place_of)


def place_of(item: pytest.Item) -> int:
    return next((n for n, path in enumerate(LONGEST) if item.nodeid.startswith(path)), len(LONGEST))


@pytest.fixture(scope="session")
def tokenizer() -> "PreTrainedTokenizerFast":
    from core.models.scratch import train_tokenizer

    return train_tokenizer(TEXTS, 400)


@pytest.fixture
def model(tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    return tiny_llama(tokenizer)


def tiny_llama(tokenizer: "PreTrainedTokenizerFast") -> "LlamaForCausalLM":
    from core.models.scratch import LlamaShape, build_llama

    shape = LlamaShape(
        vocab_size=400, hidden_size=32, intermediate_size=64, layers=2, heads=4, kv_heads=2, max_positions=128
    )
    return build_llama(shape, tokenizer, seed=1)


@pytest.fixture(scope="session")
def base_folder(tokenizer: "PreTrainedTokenizerFast", tmp_path_factory: pytest.TempPathFactory) -> Path:
    from core.models.scratch import save_model

    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(tiny_llama(tokenizer), tokenizer, folder)
    return folder


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run of tests share, for what takes long to make; lock what you make in it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def cache(shared_folder: Path) -> Path:
    """The factory's cache for all tests, with an empty database as soon as one has made it: that takes six seconds."""
    folder = shared_folder / "cache"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A real file system of a given size, such as 256k; one a test."""
    place = tmp_path / "disk"
    place.mkdir()

    def mounted(size: str) -> Path:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
        if os.getuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
            pytest.skip("mounting a small disk needs root")
        return place

    yield mounted
    if place.is_mount():
        subprocess.run(["umount", str(place)], check=True)
