"""Which engine loads and trains a model here. Imports no engine until one is chosen."""

import importlib
import importlib.util
import warnings
from typing import NamedTuple

from core.errors import ModelError, UserError
from core.models.config import Framework, ModelConfig

INSTALL_UNSLOTH = "pip install 'data-factory[unsloth]'"
STOCK = "model.framework: hf trains the same adapter with the stock kernels"


class FrameworkNotice(UserWarning):
    """Another engine than the chosen one is used, as the config allows, or the chosen one without its kernels."""


class Choice(NamedTuple):
    """The engine of a run."""

    framework: Framework
    notice: str | None = None
    """Why it is not the one that was asked for, or not what was hoped of it."""


def edits_libraries(framework: Framework) -> bool:
    """Tell whether an engine changes the libraries it uses for the whole process, and belongs in one of its own."""
    return framework == "unsloth"


def choose_framework(config: ModelConfig, *, has_gpu: bool) -> Choice:
    """Choose the engine: the one asked for, or hf with a notice where the config allows that.

    Args:
        config: The model block.
        has_gpu: A GPU that the engine can use is here; hf does not ask.

    Raises:
        UserError: If the one asked for cannot work here and ``fall_back`` is false.
    """
    obstacle = find_obstacle(config.framework, has_gpu=has_gpu)
    if obstacle:
        return fallen_back(config, obstacle)
    return Choice(config.framework, find_caveat(config.framework, has_gpu=has_gpu))


def find_obstacle(framework: Framework, *, has_gpu: bool) -> UserError | None:
    """Say why an engine cannot work here; None if it can."""
    where = "model.framework"
    if framework == "unsloth" and importlib.util.find_spec("unsloth") is None:
        return ModelError("unsloth is not installed", where=where, fix=f"{INSTALL_UNSLOTH}; or {STOCK}")
    if framework == "unsloth" and not has_gpu:
        what = "unsloth needs a GPU, and PyTorch finds none"
        return ModelError(what, where=where, fix=f"run on a machine with one; or {STOCK}")
    return None


def find_caveat(framework: Framework, *, has_gpu: bool) -> str | None:
    """Say why an engine that works here is no faster than hf; None if nothing is known to keep it from it.

    Args:
        framework: The engine.
        has_gpu: An NVIDIA GPU is here.
    """
    if framework != "fused" or (has_gpu and importlib.util.find_spec("triton")):
        return None
    missing = "there is no NVIDIA GPU here" if not has_gpu else "Triton is not installed"
    return f"{missing}: fused trains with the plain definitions of its kernels, and hf is as good"


def fallen_back(config: ModelConfig, obstacle: UserError) -> Choice:
    """Choose hf instead, or raise what stands in the way."""
    if not config.fall_back:
        raise obstacle
    return Choice("hf", f"{obstacle.what}; training with hf instead, as model.fall_back allows")


def prepare_framework(config: ModelConfig) -> Choice:
    """Import the chosen engine; call it first in the process that trains, before any other import.

    Unsloth edits Transformers, PEFT and TRL while it is imported, and warns that it may be slower where they were
    imported before it: a module that has copied a function by then keeps the stock one. It also leaves its edits
    behind: of Llama, Mistral and Qwen only the models it loaded itself run them, but of other families (Gemma, Phi)
    it replaces the classes, so what hf loads after that runs unsloth's. Both are why a run trains with it in a
    process of its own, see ``edits_libraries`` and ``core.training.apart``; a program that calls ``load_model`` with it
    should do as ``core.training.worker`` does. Every function that loads a model for training calls this again, so
    forgetting the early call costs speed, not correctness. Nothing is imported where the config asks for hf.

    Returns:
        The engine to use; a fall-back, and kernels that cannot run here, are also told as a ``FrameworkNotice``
        warning.

    Raises:
        UserError: If the engine cannot work here and ``fall_back`` is false.
    """
    choice = choose_framework(config, has_gpu=config.framework != "hf" and _sees_gpu(config.framework))
    if choice.framework == "unsloth":
        try:
            importlib.import_module("unsloth")
        except (ImportError, NotImplementedError, RuntimeError, AttributeError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            broken = ModelError(
                f"unsloth is installed but cannot be imported: {lines[0]}",
                where="model.framework",
                fix=f"{INSTALL_UNSLOTH} into a fresh environment; or {STOCK}",
            )
            choice = fallen_back(config, broken)
    if choice.notice:
        warnings.warn(choice.notice, FrameworkNotice, stacklevel=2)
    return choice


def _sees_gpu(framework: Framework) -> bool:
    """Tell whether PyTorch finds a GPU; AMD's count for unsloth alone."""
    import torch

    return torch.cuda.is_available() and (framework != "fused" or torch.version.cuda is not None)
