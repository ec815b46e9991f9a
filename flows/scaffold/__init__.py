"""Start a project: a folder with a complete config, a data folder and a page about the domain."""

import re
from pathlib import Path

from core.artifacts import atomic_path
from core.errors import ConfigError

TEMPLATES = Path(__file__).parent

FILES = {
    "config.yaml": "config.yaml.jinja",
    "data/README.md": "data.md.jinja",
    "data/rows/examples.jsonl": "examples.jsonl.jinja",
    "docs/domain.md": "domain.md.jinja",
    ".gitignore": "gitignore.jinja",
}
"""What a project starts with, and the template of each file."""


def init_project(name: str, target: Path) -> list[str]:
    """Write a new project, whole or not at all.

    Args:
        name: The run's name: letters, digits, '.', '_' and '-'.
        target: The project's folder; it must not exist or be empty.

    Returns:
        What was written and what to do next, one line each.

    Raises:
        ConfigError: If the name cannot be used, or the folder holds something.
    """
    # The same rule that RunConfig.name has, so that the new config is valid.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ConfigError(
            f"{name!r} cannot name a project",
            where="NAME",
            fix="use up to 64 letters, digits, '.', '_' and '-', with a letter or digit first",
        )
    _require_free(target)
    with atomic_path(target) as part:
        for file, template in FILES.items():
            place = part / file
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(_render(template, name), encoding="utf-8", newline="\n")
    return [
        *(f"wrote {target / file}" for file in FILES),
        f"next: put your rows into {target / 'data' / 'rows'}",
        f"then: factory validate {target / 'config.yaml'}",
    ]


def _render(template: str, name: str) -> str:
    return (TEMPLATES / template).read_text(encoding="utf-8").replace("{{ name }}", name)


def _require_free(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        what = "the folder is not empty" if target.is_dir() else "a file of that name exists"
        raise ConfigError(what, where=str(target), fix="choose another name; nothing was changed")
