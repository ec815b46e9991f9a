"""The libraries' errors about a model, turned into one message with its fix."""

import contextlib
from collections.abc import Iterator

import torch
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError

from core.errors import FactoryError, ModelError, ResourceError

GENERAL_FIX = (
    "give a folder with config.json, tokenizer.json and *.safetensors, or a Hub id you can reach "
    "(model.name in the config); pickled weights and remote code are refused"
)


@contextlib.contextmanager
def clear_messages(name: str) -> Iterator[None]:
    """Turn whatever a library raises about a model into a ``ModelError`` or ``ResourceError``.

    Args:
        name: Folder or Hub id that the message is about.
    """
    try:
        yield
    except FactoryError:
        raise
    except torch.OutOfMemoryError as error:
        fix = "load_in_4bit: true, or a smaller model"
        raise ResourceError("not enough GPU memory to load the model", where=name, fix=fix) from error
    except MemoryError as error:
        raise ResourceError(
            "not enough memory to load the model", where=name, fix="a smaller model"
        ) from error
    except (OfflineModeIsEnabled, HfHubHTTPError, LocalEntryNotFoundError, HFValidationError) as error:
        raise hub_error(name, error) from error
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise ModelError(
            f"cannot load the model: {first_line(error)}", where=name, fix=GENERAL_FIX
        ) from error
    except RuntimeError as error:
        if "mismatch" not in str(error):
            raise
        what = "the weights do not have the shapes that config.json describes"
        fix = "take config.json and the weights from the same model"
        raise ModelError(what, where=name, fix=fix) from error


def hub_error(name: str, error: Exception) -> ModelError:
    """Say why the Hub did not give a model, and what to do about it."""
    cached = f"hf download {name}, on a machine that is online, and copy its cache; or give a local folder"
    match error:
        case GatedRepoError():
            fix = f"accept its terms at https://huggingface.co/{name}, then: hf auth login"
            return ModelError("the model is gated: its owner has to grant access", where=name, fix=fix)
        case RevisionNotFoundError():
            return ModelError("the model has no such revision", where=name, fix="check model.revision")
        case RepositoryNotFoundError():
            what = "the Hub has no such model, or it is private"
            return ModelError(what, where=name, fix="check the spelling; for a private model: hf auth login")
        case OfflineModeIsEnabled():
            what = "the model is not in the cache, and HF_HUB_OFFLINE forbids to download it"
            return ModelError(what, where=name, fix=f"unset HF_HUB_OFFLINE, or {cached}")
        case LocalEntryNotFoundError():
            what = "the model is not in the cache, and the Hub cannot be reached"
            return ModelError(what, where=name, fix=f"check the connection, or {cached}")
        case HfHubHTTPError() if error.response is not None and error.response.status_code in (401, 403):
            return ModelError("the Hub refuses access to the model", where=name, fix="hf auth login")
    return ModelError(f"the Hub did not give the model: {first_line(error)}", where=name, fix=GENERAL_FIX)


def first_line(error: BaseException) -> str:
    """Return the first line that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
