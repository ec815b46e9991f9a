"""Which architectures the installed Transformers has as causal language models, without importing it."""

import ast
import functools
import importlib.metadata
import importlib.util
from pathlib import Path
from typing import Any

TABLE = "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"


@functools.cache
def causal_classes() -> dict[str, tuple[str, ...]]:
    """Map every ``model_type`` to the classes it loads as; empty if that cannot be told.

    Importing the table takes seconds and brings PyTorch along; reading its source takes 20 ms, and a look
    before a run must not load a framework.
    """
    spec = importlib.util.find_spec("transformers")
    if spec is None or not spec.origin:
        return {}
    source = Path(spec.origin).parent / "models" / "auto" / "modeling_auto.py"
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
        pairs = next(_entries(node) for node in tree.body if _assigns(node))
    except (OSError, SyntaxError, StopIteration, ValueError):
        return {}
    return {str(k): (v,) if isinstance(v, str) else tuple(map(str, v)) for k, v in pairs}


def _assigns(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(target, ast.Name) and target.id == TABLE for target in targets)


def _entries(node: ast.stmt) -> list[tuple[Any, Any]]:
    value = getattr(node, "value", None)
    listed = value.args[0] if isinstance(value, ast.Call) and value.args else value
    if listed is None:
        raise ValueError(TABLE)
    content = ast.literal_eval(listed)
    return list(content.items() if isinstance(content, dict) else content)


def transformers_version() -> str:
    """Return the version of the installed Transformers."""
    try:
        return importlib.metadata.version("transformers")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
