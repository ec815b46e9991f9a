"""A phase's key covers the source of every core module it calls."""

import importlib
import inspect
import sys
from pathlib import Path

import grimp
import pytest

from tasks.events import PHASES

ROOT = Path(__file__).parents[2]
MODULES = {phase: f"tasks.{phase}" for phase in PHASES} | {"format": "tasks.format_records"}
SETTINGS = ("config", "reports", "learning_reports")
"""Settings and reports are inputs: their values are in the key."""
SHARED = {
    "core.artifacts",
    "core.config",
    "core.errors",
    "core.data.sources.places",
    "core.data.workers.ray_engine",
}
"""They move, name or show results but do not make them."""


@pytest.fixture(scope="module")
def graph():
    sys.path.insert(0, str(ROOT))
    return grimp.build_graph("core", "tasks", "gates")


def called(graph, module: str) -> set[str]:
    """Core modules that a phase module imports, directly or through others, also inside functions."""
    return {
        name for name in graph.find_upstream_modules(module)
        if name.startswith("core.") and name.rsplit(".", 1)[1] not in SETTINGS and name not in SHARED
    }  # fmt: skip


def covered(name: str, reads: tuple[str, ...]) -> bool:
    return any(name == read or name.startswith(f"{read}.") for read in reads)


def reads_of(module: str) -> tuple[str, ...]:
    """What the phase's decorator was given, found in the closure of its call."""
    for value in vars(importlib.import_module(module)).values():
        if inspect.isfunction(value) and value.__closure__ and value.__module__ == "tasks.phase":
            cells = inspect.getclosurevars(value).nonlocals
            carried = inspect.getclosurevars(cells["carried"].fn).nonlocals
            return carried["sources"]
    raise LookupError(module)


@pytest.mark.parametrize("phase", PHASES)
def test_reads_cover_what_the_phase_calls(graph, phase: str):
    module = MODULES[phase]
    packages = {n for n in called(graph, module) if graph.find_children(n)}
    # A package is covered by its parts; its __init__ holds no logic but for those that export an engine.
    missing = {n for n in called(graph, module) - packages if not covered(n, reads_of(module))}
    assert not missing


def test_training_does_not_depend_on_how_answers_are_graded():
    assert not any(
        read.startswith(("core.evaluation", "core.quantization")) for read in reads_of("tasks.finetune")
    )
