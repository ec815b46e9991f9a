"""`factory chat --adapter`: talk to a workspace's base model with adapters that are switched as one goes."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from core.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from core.deployment.switching import AdapterRuntime

BARE = "none"
"""The name of the base without an adapter."""
SPELLING = "write --adapter NAME=FOLDER"


def named_folders(given: Iterable[str]) -> dict[str, Path]:
    """Read what was given as NAME=FOLDER.

    Raises:
        ConfigError: If one has no name or folder, is named twice, or its folder is none.
    """
    found: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        name, path = name.strip(), Path(folder.strip()).expanduser()
        if not (name and equals and folder.strip()):
            raise ConfigError(f"{text!r} is not NAME=FOLDER", where="--adapter", fix=SPELLING)
        if name in found or name == BARE:
            why = "stands for the bare base" if name == BARE else "is given twice"
            raise ConfigError(f"the name {name} {why}", where="--adapter", fix="give it another name")
        if not path.is_dir():
            raise ConfigError(
                f"there is no folder {path}", where="--adapter", fix="give the folder that finetune wrote"
            )
        found[name] = path.resolve()
    return found


def load_runtime(workspace: Path, adapters: dict[str, Path]) -> "AdapterRuntime":
    """Load the base that a workspace trained from, with its template, and put adapters on it.

    Raises:
        ConfigError: If nothing was trained here, or the base is gone.
        ModelError: If an adapter is damaged or for another base.
    """
    from core.models.adapter_files import read_adapter
    from core.models.quiet import quiet

    base, merged = _trained_from(workspace)
    for folder in adapters.values():
        # A damaged one is known before PyTorch and a base of gigabytes are loaded.
        read_adapter(folder)
    with quiet():
        from core.data.config import DatasetConfig
        from core.deployment.switching import AdapterRuntime
        from tasks.chat_tokens import chat_tokenizer

        # The merged model's tokenizer brings the template that training used, also where the base has none.
        chat = chat_tokenizer(merged, DatasetConfig().chat_template)
        return AdapterRuntime.load(base, adapters, chat)


def _trained_from(workspace: Path) -> tuple[Path, Path]:
    """Return the folders of the base and of the merged model."""
    from tasks.workspace import HERE, Workspace, read_object

    place = Workspace(workspace)
    artifact = read_object(place.phase_record("finetune")).get("result", {}).get("artifact", {})
    base, merged = read_object(place.private / "base.json").get("folder"), artifact.get("path")
    if not base or not merged:
        raise ConfigError(
            "no model was trained here",
            where=str(workspace),
            fix=f"first: factory run CONFIG --workspace {workspace} --until finetune",
        )
    folders = Path(base), Path(merged.replace(HERE, str(place.root)))
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is gone", where=str(workspace), fix="run the factory again")
    return folders


def switched(runtime: "AdapterRuntime", wanted: str) -> str:
    """Do what followed /adapter: switch to a name, or to the bare base; say what there is.

    Args:
        runtime: Base and adapters.
        wanted: A name, none, or nothing to only list.

    Returns:
        One line for the terminal.
    """
    try:
        if wanted:
            runtime.use(None if wanted == BARE else wanted)
    except ModelError as error:
        return f"{error.what}; {error.fix}, or {BARE}"
    names = [*runtime.names, BARE]
    return "adapters: " + "  ".join(f"[{n}]" if n == (runtime.in_use or BARE) else n for n in names)
