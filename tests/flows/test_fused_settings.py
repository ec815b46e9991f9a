"""model.framework: fused on the command line, on a machine without an NVIDIA GPU: what is let through, what is not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from flows.cli import app, guarded

ROOT = Path(__file__).parents[2]
FUSED = ("-o", "model.framework=fused")
NOT_HERE = pytest.mark.skipif(torch.cuda.is_available(), reason="an NVIDIA GPU is here")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))


def factory(command: str, *options: str) -> int:
    return guarded(lambda: app([command, "tests/thimble/tiny.yaml", *options]))


TWICE = """
import sys
from flows.cli import app, guarded
command = ["validate", "tests/thimble/tiny.yaml", "--fast", "-o", "model.framework=fused"]
for options in (["--json"], ["-o", "training.activation_budget=2.5"]):
    if code := guarded(lambda: app([*command, *options])):
        sys.exit(code)
    print("=" * 80)
"""


class Told(NamedTuple):
    machine: str
    person: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Validate in a process of its own, as a user does: it sets its environment before anything is imported."""
    environment = {**os.environ, "FACTORY_HOME": str(tmp_path_factory.mktemp("home"))}
    done = subprocess.run(
        [sys.executable, "-c", TWICE], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    machine, person, rest = done.stdout.split("=" * 80)
    assert not rest.strip()
    return Told(machine, person)


@NOT_HERE
def test_validate_lets_it_pass_and_warns_that_hf_is_as_good_here(told: Told):
    findings = json.loads(told.machine)["findings"]
    (warning,) = [each for each in findings if each["level"] == "warning"]
    assert (warning["where"], warning["kind"]) == ("model.framework", "software")
    assert "no NVIDIA GPU here: fused trains with the plain definitions of its kernels" in warning["what"]
    assert not [each for each in findings if each["level"] == "error"]


@NOT_HERE
def test_validate_says_so_in_words(told: Told):
    shown = " ".join(told.person.split())
    assert (
        "warning model.framework: there is no NVIDIA GPU here" in shown and "valid (with warnings)" in shown
    )


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize("value", ["true", "-1", "all", "null", ".nan", ".inf", "[1]", "{gib: 1}", "''"])
def test_what_is_no_budget_ends_with_2_and_one_message(
    command: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    where = ("--workspace", str(tmp_path / "ws")) if command == "run" else ()
    assert factory(command, *FUSED, "-o", f"training.activation_budget={value}", *where) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ") and "Traceback" not in told.err
    assert (
        told.err.count("error: ")
        == told.err.count("training.activation_budget must be auto or a number of GiB")
        == 1
    )
    assert not (tmp_path / "ws").exists()


@pytest.mark.parametrize("command", ["run", "validate"])
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
def test_training_with_rounding_is_refused_before_anything_starts(
    command: str, kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    where = ("--workspace", str(tmp_path / "ws")) if command == "run" else ()
    made = ("-o", f"quantization={{formats: [{kind}], aware: {kind}}}")
    assert factory(command, *FUSED, *made, *where) == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == 1 and "Traceback" not in told
    assert f"fused computes adapters in kernels of its own, which do not round to {kind}" in told
    assert "model.framework: hf, or set quantization.aware: null" in told
    assert not (tmp_path / "ws").exists()
