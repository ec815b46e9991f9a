"""What may be imported by what, beyond the contracts in pyproject.toml."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "peft", "llama_cpp", "scipy", "mlflow", "prefect")


def modules(*parts: str) -> list[str]:
    return sorted(
        path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        for part in parts
        for path in ROOT.glob(part)
    )


def loaded_after(names: list[str]) -> set[str]:
    code = f"import importlib, sys\nfor n in {names!r}: importlib.import_module(n)\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "names",
    [
        [
            "flows.cli",
            "flows.launch",
            "flows.checks",
            "flows.config_file",
            "flows.preflight",
            "flows.scaffold",
        ],
        modules("gates/*.py"),
        modules("core/*/config.py", "core/*/reports.py"),
    ],
    ids=["command line", "gates", "configs and reports"],
)
def test_light_floors_load_no_engine(names: list[str]):
    # tasks.events is all that the command line needs of tasks before a run.
    assert loaded_after(names).isdisjoint(HEAVY)


def test_help_loads_next_to_nothing():
    assert loaded_after(["flows.cli"]).isdisjoint({*HEAVY, "pydantic", "rich.live", "yaml"})


def test_phases_load_engines_only_when_they_work():
    assert loaded_after(modules("tasks/*.py")).isdisjoint({"torch", "transformers", "peft", "llama_cpp"})


def test_every_room_says_what_it_is():
    for room in ("core", "core/data", "core/models", "core/training", "core/evaluation", "core/deployment", "gates",
                 "tasks", "flows", "data", "tests"):  # fmt: skip
        assert (ROOT / room / "README.md").stat().st_size > 200, room
