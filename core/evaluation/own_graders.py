"""Graders that a config describes: a pattern, a list of words, or a Python function of the user's."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DataError
from core.evaluation.config import GraderConfig
from core.evaluation.grader_imports import load_grader
from core.evaluation.graders import normalise

Grade = Callable[[str, str, dict[str, Any]], float]
"""(answer, reference, metadata) -> score from 0 to 1."""
REFERENCE = "{reference}"


def own_grader(name: str, config: GraderConfig, base: Path) -> Grade:
    """Build a grader from its settings.

    Args:
        name: Its key under ``evaluation.graders``.
        config: Its settings.
        base: Folder that the path of a callable is relative to.

    Raises:
        ConfigError: If the settings are incomplete, the pattern is none, or the function cannot be had.
    """
    where = f"evaluation.graders.{name}"
    if config.type == "regex":
        return _regex(config, where)
    if config.type == "keywords":
        return _keywords(config)
    return _function(config, where, base)


def _regex(config: GraderConfig, where: str) -> Grade:
    pattern = config.pattern
    if not pattern:
        raise ConfigError("a regex grader needs a pattern", where=where, fix="set pattern")
    try:
        re.compile(pattern.replace(REFERENCE, "x"))
    except re.error as error:
        raise ConfigError(
            f"{pattern!r} is no regular expression: {error}", where=f"{where}.pattern"
        ) from error

    def grade(answer: str, reference: str, metadata: dict[str, Any]) -> float:
        return float(re.search(pattern.replace(REFERENCE, re.escape(reference)), answer) is not None)

    return grade


def _keywords(config: GraderConfig) -> Grade:
    def grade(answer: str, reference: str, metadata: dict[str, Any]) -> float:
        words = config.keywords or _listed(metadata)
        found = [_holds(answer, word) for word in words]
        return float(any(found)) if config.match == "any" else sum(found) / len(found)

    return grade


def _listed(metadata: dict[str, Any]) -> tuple[str, ...]:
    """Return the keywords of a row, a list or a text with commas."""
    value = metadata.get("keywords")
    words = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    kept = tuple(str(word).strip() for word in words if str(word).strip())
    if not kept:
        raise DataError("the row has no keywords", fix="give metadata.keywords, or keywords in the grader")
    return kept


def _holds(answer: str, word: str) -> bool:
    """Tell whether a word or phrase stands in an answer as a whole, whatever its case."""
    return re.search(rf"(?<!\w){re.escape(normalise(word))}(?!\w)", normalise(answer)) is not None


def _function(config: GraderConfig, where: str, base: Path) -> Grade:
    file, colon, name = (config.path or "").rpartition(":")
    if not colon or not file or not name.isidentifier():
        raise ConfigError(
            f"{config.path!r} names no function", where=f"{where}.path", fix="write FILE.py:FUNCTION"
        )
    path = base / file
    if not path.is_file():
        raise ConfigError(f"there is no file {path}", where=f"{where}.path", fix="correct the path")
    function = getattr(_module(path, where), name, None)
    if not callable(function):
        raise ConfigError(f"{path.name} has no function {name}", where=f"{where}.path")
    graded: Grade = function
    return graded


def _module(path: Path, where: str) -> Any:
    if path.suffix != ".py":
        raise ConfigError(f"{path.name} is no Python file", where=f"{where}.path", fix="give a .py file")
    try:
        return load_grader(path)
    except (Exception, SystemExit) as error:  # Whatever the user's code raises, sys.exit included.
        raise ConfigError(
            f"{path.name} fails when loaded: {type(error).__name__}: {error}", where=f"{where}.path"
        ) from error
