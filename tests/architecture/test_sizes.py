"""Short files and short functions: what is long needs a reason here."""

import ast
from collections.abc import Iterator
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[2]
LONGEST_FILE, LONGEST_FUNCTION, TYPICAL_FUNCTION = 400, 45, 10
EXCEPTIONS = {
    "tasks/deploy.py:deploy": "one phase, step by step",
    "core/kernels/glu/fused_thin.py:_glu_gradients": "one loop over tiles that carries every sum",
    "core/kernels/rms_norm/fused_thin.py:_rms_norm_gradients": "one loop over tiles that carries every place and sum",
}


def sources() -> Iterator[Path]:
    for floor in ("core", "gates", "tasks", "flows"):
        yield from (ROOT / floor).rglob("*.py")


def functions() -> Iterator[tuple[str, int]]:
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                doc = len((ast.get_docstring(node) or "").splitlines())
                name = f"{path.relative_to(ROOT).as_posix()}:{node.name}"
                yield name, (node.end_lineno or node.lineno) - node.lineno + 1 - doc


def test_files_are_short():
    long = {
        p.name: n for p in sources() if (n := len(p.read_text(encoding="utf-8").splitlines())) > LONGEST_FILE
    }
    assert not long


def test_functions_are_short():
    lengths = dict(functions())
    long = {name: n for name, n in lengths.items() if n > LONGEST_FUNCTION and name not in EXCEPTIONS}
    assert not long
    assert median(lengths.values()) <= TYPICAL_FUNCTION
    assert set(EXCEPTIONS) <= set(lengths)
