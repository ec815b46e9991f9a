"""Which weights an adapter was trained on: written beside it, compared when it is used."""

import hashlib
import re
from pathlib import Path

from pydantic import ValidationError
from torch import nn

from core.artifacts import file_digest, write_json
from core.config import Frozen
from core.errors import ModelError
from core.models.weight_files import weight_files

FILE = "base.json"
_SNAPSHOT = re.compile(r"models--([^/]+)/snapshots/([0-9a-f]{7})[0-9a-f]*$")


class BaseIdentity(Frozen):
    """A base model by its weights."""

    name: str
    """Hub id and commit, or the folder; for people."""
    digest: str
    """Of the weight files; neither their names nor tokenizer and settings are part of it."""

    def __str__(self) -> str:
        """Say both in a few words."""
        return f"{self.name} (weights {self.digest.removeprefix('sha256:')[:12]})"


def identify(model: nn.Module) -> BaseIdentity | None:
    """Identify the base that a model was loaded from, which reads all of its weight files.

    Args:
        model: The base, without any adapter.

    Returns:
        None if it does not come from files, or the files are gone.
    """
    place = Path(getattr(model, "name_or_path", "") or "")
    files = weight_files(place)
    if not place.name or not files or not all(file.is_file() for file in files):
        return None
    total = hashlib.sha256("".join(sorted(map(file_digest, files))).encode())
    return BaseIdentity(name=_named(place), digest=f"sha256:{total.hexdigest()}")


def write_identity(folder: Path, model: nn.Module) -> None:
    """Write beside an adapter which base it belongs to, if that is known."""
    if (base := identify(model)) is not None:
        write_json(folder / FILE, base)


def check_identity(folder: Path, model: nn.Module) -> None:
    """Refuse an adapter that says it was trained on other weights; one that says nothing passes.

    Args:
        folder: The adapter's.
        model: The base that it is for, without any adapter.

    Raises:
        ModelError: If the weights are others, or what the adapter says cannot be read.
    """
    if not (folder / FILE).is_file():
        return
    theirs, ours = _read(folder), identify(model)
    if ours is not None and ours.digest != theirs.digest:
        raise ModelError(
            f"the adapter was trained on {theirs}, and this is {ours}: the shapes are the same, the weights are not",
            where=str(folder),
            fix="use the base that the adapter was trained on; if these are the same weights in other files, "
            f"delete {FILE}",
        )


def _read(folder: Path) -> BaseIdentity:
    try:
        return BaseIdentity.model_validate_json((folder / FILE).read_bytes())
    except (OSError, ValidationError) as error:
        raise ModelError(f"{FILE} cannot be read", where=str(folder), fix="copy the adapter again") from error


def _named(place: Path) -> str:
    """Return a Hub id with its commit for a snapshot of the cache, else the folder as it is."""
    found = _SNAPSHOT.search(place.as_posix())
    return f"{found.group(1).replace('--', '/')}@{found.group(2)}" if found else str(place)
