"""Is the base model usable? Looks at names, files and their headers; loads no weights."""

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from core.models.files import folder_flaws, read_object
from core.models.resources import PUBLISHED, published_shape
from core.models.weight_files import missing_shards
from flows.config_file import resolve_path
from flows.preflight.report import Finding
from flows.run_config import RunConfig


class FoundModel(NamedTuple):
    """A base model, as far as it is known before loading."""

    folder: Path | None
    """Where it lies; None while it must still be downloaded."""
    config: dict[str, Any]
    """Its config.json, empty if that is not here."""


def find_model(config: RunConfig, config_path: Path) -> tuple[FoundModel | None, list[Finding]]:
    """Find the base model, here or in the Hub's cache, and what is wrong with it.

    Args:
        config: The run.
        config_path: Its file; a model folder may lie beside it.

    Returns:
        The model, None if the name leads nowhere; and the findings.
    """
    name = config.model.name
    place = resolve_path(name, config_path)
    if place.is_dir():
        found, wrong = _read_model(place), list(_folder_findings(place))
    elif place.exists():
        return None, [
            _bad_model("is a file", "give the folder with config.json, tokenizer.json and *.safetensors")
        ]
    elif not _is_hub_id(name):
        return None, [
            _bad_model(f"'{name}' is no folder here and no Hub id", _nearest_models(name, config_path))
        ]
    else:
        found, wrong = _hub_model(name, config.model.revision)
    longest = (found.config.get("text_config") or found.config).get("max_position_embeddings")
    if isinstance(longest, int) and config.model.max_seq_length > longest:
        what = f"{config.model.max_seq_length} tokens exceed the model's own window of {longest}"
        fix = f"model.max_seq_length: {longest} or less"
        wrong.append(
            Finding(level="warning", kind="setting", where="model.max_seq_length", what=what, fix=fix)
        )
    return found, wrong


def _bad_model(what: str, fix: str) -> Finding:
    return Finding(level="error", kind="model", where="model.name", what=what, fix=fix)


def _is_hub_id(name: str) -> bool:
    """Tell whether a name reads owner/name; a Hub id without an owner is too easily a typing error."""
    parts = name.split("/")
    plain = all(part and not part.startswith((".", "~", "-")) for part in parts)
    return len(parts) == 2 and plain and not any(c.isspace() or c in "\\:" for c in name)


def _nearest_models(name: str, config_path: Path) -> str:
    bases, depths = (Path.cwd(), config_path.resolve().parent), ("*/config.json", "*/*/config.json")
    folders = [file.parent for base in bases for depth in depths for file in base.glob(depth)]
    known = {folder.name.lower(): str(folder) for folder in folders}
    known |= {hub_id.rsplit("/", 1)[-1].lower(): hub_id for hub_id in PUBLISHED}
    close = difflib.get_close_matches(Path(name).name.lower(), known, n=2, cutoff=0.5)
    general = "give a folder with config.json, or a Hub id such as google/gemma-3-4b-it"
    return f"did you mean {' or '.join(known[each] for each in close)}?" if close else general


def _read_model(folder: Path) -> FoundModel:
    return FoundModel(
        folder, read_object(folder / "config.json").value
    )  # _folder_findings says what is wrong


def _folder_findings(folder: Path) -> Iterator[Finding]:
    yield from (_bad_model(f"{folder} {flaw.what}", flaw.fix) for flaw in folder_flaws(folder))


def _hub_model(name: str, revision: str | None) -> tuple[FoundModel, list[Finding]]:
    """Look for a Hub id in the local cache; what is not there a run downloads, if it may."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError as error:
        wrong = _bad_model(f"'{name}' is no valid Hub id: {error}", "check its spelling")
        return FoundModel(None, {}), [wrong]
    if not isinstance(cached, str):
        return FoundModel(None, {}), [_absent(name)]
    model, folder = _read_model(Path(cached).parent), Path(cached).parent
    if not list(folder.glob("*.safetensors")) or missing_shards(folder):
        return model._replace(folder=None), [_absent(name)]
    return model, list(_folder_findings(folder))


def _absent(name: str) -> Finding:
    """Say what an uncached Hub id means for a run."""
    from huggingface_hub import constants

    here = Path(name).parent
    if here.is_dir():
        inside = ", ".join(sorted(p.name for p in here.iterdir() if p.is_dir())[:5]) or "no folder"
        return _bad_model(
            f"'{name}' is no folder here and no model in the Hub's cache", f"{here} holds {inside}"
        )
    if constants.HF_HUB_OFFLINE:
        what = f"'{name}' is not on this machine, and HF_HUB_OFFLINE forbids to download it"
        fix = f"unset HF_HUB_OFFLINE, or run: hf download {name}"
        return Finding(level="error", kind="software", where="model.name", what=what, fix=fix)
    what = f"'{name}' is not on this machine; the run will download it from the Hugging Face Hub"
    fix = f"to do it now: hf download {name}" + ("" if published_shape(name) else "; and check the spelling")
    return Finding(level="warning", kind="model", where="model.name", what=what, fix=fix)
