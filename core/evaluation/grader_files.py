"""Which files a user's grader consists of: its own, and the modules beside it that it imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

from core.artifacts import file_digest


def grader_digest(file: Path) -> str:
    """Digest a grader with the local modules it imports, directly or through each other.

    Neither where the folder lies nor what the grader's own file is called is part of it. What is installed
    is not followed, nor what a grader imports by a name it puts together, nor files it only reads.

    Args:
        file: The Python file that the config names.
    """
    folder = file.parent
    others = sorted(local_imports(file) - {file})
    named = (f"{other.relative_to(folder).as_posix()}={file_digest(other)}" for other in others)
    return " ".join((file_digest(file), *named))


def local_imports(file: Path) -> set[Path]:
    """Find the modules in a file's folder, and in packages there, that it imports; the file is among them."""
    root, found, waiting = file.parent, {file}, [file]
    while waiting:
        fresh = {path for path in _imported(waiting.pop(), root) if path not in found}
        found |= fresh
        waiting += sorted(fresh)
    return found


def _imported(file: Path, root: Path) -> Iterator[Path]:
    for names, above in _names(file):
        # Relative imports start at the file's own folder, others where the grader lies.
        place = file.parents[min(above, len(file.parents)) - 1] if above else root
        if place.is_relative_to(root):
            yield from _files(place, names)


def _names(file: Path) -> Iterator[tuple[list[str], int]]:
    """Yield the parts of every imported name, and how many folders above it starts; 0 is an absolute import."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return  # Loading says what is wrong with it.
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name.split("."), 0) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = node.module.split(".") if node.module else []
            # What is imported from a package may be a module of it.
            yield from (([*start, alias.name], node.level) for alias in node.names)


def _files(place: Path, names: list[str]) -> Iterator[Path]:
    """Yield the files that importing a dotted name runs: every package's on the way, and the module's."""
    for name in ("", *names):
        place = place / name
        module = place.with_name(f"{place.name}.py")
        for file in (place / "__init__.py", module):
            if name and file.is_file():
                yield file
        if not place.is_dir():
            return
