"""Read a run config from YAML or JSON, and explain every mistake in it at once, by line and key."""

import difflib
import glob
import json
import re
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple, get_origin

import yaml
from pydantic import BaseModel

from core.errors import ConfigError
from flows.measuring import with_paths
from flows.run_config import RunConfig, check, inner_model, overlap
from flows.run_outputs import Problem

MAX_BYTES = 1 << 20
"""No settings are that long; a data or model file given by mistake is."""

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"

AFTER_THE_FILE = MAX_BYTES + 1
"""Line number of overrides, so that their problems come last."""


class _Loader(yaml.SafeLoader):
    """Plain YAML 1.2 scalars: ``no`` is text, ``1e-4`` a number, a date is text."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


class _Place(NamedTuple):
    """Where a setting was made."""

    label: str
    """``file:line``, or the override."""
    line: int


_Found = tuple[Problem, _Place | None]
"""A problem, and where it stands if that is not where its key stands."""


class _Document(NamedTuple):
    data: Any
    places: dict[str, _Place]
    """By dotted key."""
    found: list[_Found]


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a run config, apply overrides, and check it.

    Data and model paths that exist beside the config but not under the current directory are made
    absolute, so that a config works from anywhere.

    Args:
        path: A YAML file, or a JSON one by its ending.
        overrides: ``dotted.key=VALUE`` texts, values parsed as YAML; later ones win.

    Raises:
        ConfigError: On anything wrong, all of it in one message.
    """
    document = _parse(path)
    own = deepcopy(document.data) if overrides else None
    found = document.found + [each for text in overrides for each in _override(document, text)]
    checked = _checked(document.data, path)
    if isinstance(checked, list):
        old = _checked(own, path) if own else checked
        known = set(old) if isinstance(old, list) else set()
        found += [(each, None if each in known else _overriding(each, document.places)) for each in checked]
    if found or isinstance(checked, list):
        raise _report(path, found, document.places)
    return _anchored(checked, path)


def config_schema() -> dict[str, Any]:
    """Return the JSON schema of a run config, with descriptions, for editors."""
    schema = RunConfig.model_json_schema()
    schema["properties"]["$schema"] = {"type": "string", "description": "For editors; ignored."}
    return {"$schema": SCHEMA_ID, **schema}


def resolve_path(text: str, config_path: Path | None) -> Path:
    """Find a file, folder or glob of a config: from the current directory, else from the config's folder.

    When neither has it, the path from the current directory is returned, for the caller's message.
    """
    given = Path(text).expanduser()
    folders = [Path.cwd()] if config_path is None else [Path.cwd(), config_path.resolve().parent]
    is_glob = glob.has_magic(text) and not any((folder / given).exists() for folder in folders)
    candidates = [Path(glob.escape(str(folder))) / given if is_glob else folder / given for folder in folders]
    return next((each for each in candidates if _is_there(each, is_glob)), candidates[0])


def _is_there(path: Path, is_glob: bool) -> bool:
    return bool(glob.glob(str(path), recursive=True)) if is_glob else path.exists()  # noqa: PTH207 - absolute glob


def _anchored(run: RunConfig, path: Path) -> RunConfig:
    """Make paths absolute that lead somewhere from the config's folder only."""

    def anchor(text: str) -> str:
        if _is_elsewhere(text):
            return text
        here, beside = resolve_path(text, None), resolve_path(text, path)
        return text if here == beside else str(beside)

    sources = tuple(s.model_copy(update={"path": anchor(s.path)}) for s in run.sources)
    model = run.model.model_copy(update={"name": anchor(run.model.name)})
    dataset = run.dataset
    if dataset:
        validation = dataset.validation_path and anchor(dataset.validation_path)
        dataset = dataset.model_copy(update={"path": anchor(dataset.path), "validation_path": validation})
    benchmarks = run.quality.contamination.model_copy(
        update={"files": tuple(anchor(file) for file in run.quality.contamination.files)}
    )
    quality = run.quality.model_copy(update={"contamination": benchmarks})
    return run.model_copy(
        update={
            "sources": sources,
            "model": model,
            "dataset": dataset,
            "quality": quality,
            "evaluation": with_paths(run.evaluation, anchor),
        }
    )


def _is_elsewhere(text: str) -> bool:
    """Tell an address or a hub dataset from a path."""
    return "://" in text or text.startswith("hf:")


# Reading


def _parse(path: Path) -> _Document:
    text = _read_text(path)
    try:
        document = _parse_json(text, path) if path.suffix.lower() == ".json" else _parse_yaml(text, path)
    except RecursionError as error:
        raise ConfigError("is nested too deeply for settings", where=str(path)) from error
    if document.data is None:
        raise ConfigError(
            "is empty", where=str(path), fix="factory init NAME writes a complete, commented config"
        )
    if not isinstance(document.data, dict):
        kind = "a list" if isinstance(document.data, list) else "one value"
        raise ConfigError(f"holds {kind}, not keys and values such as 'model:'", where=str(path))
    return document


def _read_text(path: Path) -> str:
    where = str(path)
    try:
        if path.is_dir():
            inside = sorted(p.name for p in path.iterdir() if p.suffix in {".yaml", ".yml", ".json"})
            fix = f"name a file in it: {', '.join(inside[:5])}" if inside else "name a YAML or JSON file"
            raise ConfigError("is a folder, not a config file", where=where, fix=fix)
        if not path.exists():
            raise ConfigError("no such file", where=where, fix=_nearest_file(path))
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                "is too large for a config (over 1 MB)", where=where, fix="data goes under sources"
            )
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=where) from error
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            "is not UTF-8 text", where=f"{where}:{line}", fix="save the file as UTF-8"
        ) from error


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either; check the path"
    names = [p.name for p in path.parent.iterdir() if p.suffix in {".yaml", ".yml", ".json"}]
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {path.parent / close[0]}?"
    return (
        f"configs here: {', '.join(sorted(names)[:5])}"
        if names
        else "factory init NAME writes a config to start from"
    )


def _parse_json(text: str, path: Path) -> _Document:
    if not text.strip():
        return _Document(None, {}, [])
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"is not valid JSON: {error.msg[0].lower()}{error.msg[1:]}",
            where=f"{path}:{error.lineno}:{error.colno}",
            fix="JSON takes no comments and no comma after the last entry; YAML is the kinder format",
        ) from error
    except ValueError as error:
        raise ConfigError(f"is not valid JSON: {error}", where=str(path)) from error
    # YAML's parser tells the lines: raw tabs cannot stand inside JSON texts, so only layout changes.
    root = yaml.compose(text.replace("\t", " "), Loader=_Loader)
    return _Document(data, *_places(root, path))


def _parse_yaml(text: str, path: Path) -> _Document:
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        data = loader.construct_document(root) if root else None
    except yaml.YAMLError as error:
        raise _yaml_error(error, text, path) from error
    except ValueError as error:
        raise ConfigError(f"a value cannot be read: {error}", where=str(path)) from error
    return _Document(data, *_places(root, path))


def _yaml_error(error: yaml.YAMLError, text: str, where: Path | str) -> ConfigError:
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return ConfigError("holds a control character", where=f"{where}:{line}", fix="remove it")
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    problem = (error.problem if isinstance(error, yaml.MarkedYAMLError) else None) or str(error)
    place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else str(where)
    if r"'\t'" in problem:
        return ConfigError("a tab stands where YAML wants spaces", where=place, fix="indent with spaces")
    if "constructor for the tag" in problem:
        tag = problem.split("'")[1].replace("tag:yaml.org,2002:", "!!")
        return ConfigError(
            f"the tag {tag} is not allowed", where=place, fix="write plain texts, numbers and lists"
        )
    if "mapping values are not allowed" in problem:
        fix = "check the indentation of this line and the one above, or put a value that holds ': ' in quotes"
        return ConfigError("a ':' stands where none can", where=place, fix=fix)
    return ConfigError(
        f"is not valid YAML: {problem}", where=place, fix="check indentation, brackets and quotes"
    )


def _places(root: yaml.Node | None, path: Path) -> tuple[dict[str, _Place], list[_Found]]:
    """Find the line of every key, and keys that stand twice in one block."""
    places: dict[str, _Place] = {}
    twice: list[_Found] = []
    seen: set[int] = set()

    def walk(node: yaml.Node, prefix: str) -> None:
        if id(node) in seen:
            return  # an alias: its lines are known under its first path
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                places[f"{prefix}{index}"] = _place(item, path)
                walk(item, f"{prefix}{index}.")
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                here, place = f"{prefix}{key.value}", _place(key, path)
                if here in places:
                    twice.append(
                        (Problem((here,), f"stands twice, first on line {places[here].line}"), place)
                    )
                places.setdefault(here, place)
                walk(value, f"{here}.")

    if root:
        walk(root, "")
    return places, twice


def _place(node: yaml.Node, path: Path) -> _Place:
    line = node.start_mark.line + 1
    return _Place(f"{path}:{line}", line)


# Overrides


def _override(document: _Document, text: str) -> list[_Found]:
    """Set one ``dotted.key=VALUE`` in the document; return what is wrong with it, if anything."""
    place = _Place(f"-o {text}", AFTER_THE_FILE)
    key, equals, raw = text.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        return [(Problem(("",), "is not KEY=VALUE, such as training.seed=1"), place)]
    key = ".".join(parts)
    try:
        value = yaml.load(raw, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:
        reason = getattr(error, "problem", None) or str(error)
        return [(Problem((key,), f"gets no valid YAML: {reason}"), place)]
    if not _set(document.data, parts, value):
        return [(Problem((key,), "cannot be set: there is no such block or list entry"), place)]
    for known in [known for known in document.places if f"{known}.".startswith(f"{key}.")]:
        del document.places[known]
    document.places[key] = place
    return []


def _set(block: object, parts: Sequence[str], value: object) -> bool:
    """Put a value at a path, making blocks on the way; a list takes an index or one past its end."""
    part, rest = parts[0], parts[1:]
    if isinstance(block, list):
        if not part.isdecimal() or int(part) > len(block):
            return False
        index = int(part)
        block[index:] = block[index:] or [{}]
        if rest:
            return _set(block[index], rest, value)
        block[index] = value
        return True
    if not isinstance(block, dict):
        return False
    if not rest:
        block[part] = value
        return True
    if block.get(part) is None:
        block[part] = {}
    return _set(block[part], rest, value)


def _overriding(problem: Problem, places: dict[str, _Place]) -> _Place | None:
    """Name the overrides that brought a problem about, which the file alone does not have.

    What contradicts what inside a block is told of the block, whose line is in the file.
    """
    labels = [
        place.label
        for key, place in places.items()
        if place.line == AFTER_THE_FILE and any(overlap(key, concerned) for concerned in problem.keys)
    ]
    return _Place(" ".join(labels), AFTER_THE_FILE) if labels else None


# Checking


def _checked(given: dict[str, Any], path: Path) -> RunConfig | list[Problem]:
    data = _without_nulls(given, RunConfig)
    data.pop("$schema", None)
    if data.get("name") in (None, ""):
        data["name"] = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "run"
    return check(data)


def _without_nulls(data: dict[Any, Any], model: type[BaseModel]) -> dict[str, Any]:
    """Drop blocks and lists with nothing in them, so that their defaults apply."""
    kept: dict[str, Any] = {}
    for key, value in ((str(key), value) for key, value in data.items()):
        field = model.model_fields.get(key)
        inner = inner_model(field.annotation) if field else None
        is_list = field is not None and get_origin(field.annotation) is tuple
        if value is not None or not (inner or is_list):
            kept[key] = _without_nulls(value, inner) if inner and isinstance(value, dict) else value
    return kept


def _report(path: Path, found: Sequence[_Found], places: dict[str, _Place]) -> ConfigError:
    """Put all problems into one error, each with its place, in the file's order."""
    # Only a wrong config needs it, and it brings pyarrow along.
    from core.data.sources.places import redacted

    placed = [(place or _nearest_place(problem.keys[0], places, path), problem) for problem, place in found]
    placed.sort(key=lambda pair: pair[0].line)
    texts = [
        (redacted(place.label), redacted(f"{problem.keys[0]} {problem.what}".strip()))
        for place, problem in placed
    ]
    fix = "factory schema explains every key"
    if len(texts) == 1:
        return ConfigError(texts[0][1], where=texts[0][0], fix=fix)
    lines = [f"{label}: {text}" for label, text in texts]
    return ConfigError("\n  ".join([f"{len(lines)} settings are wrong", *lines]), where=str(path), fix=fix)


def _nearest_place(key: str, places: dict[str, _Place], path: Path) -> _Place:
    """Return the place of a key, or of the closest block around it that the file has."""
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, _Place(str(path), 0))
