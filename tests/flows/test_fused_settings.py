"""model.framework: fused on the command line: what is refused. What is let through is in tests/thimble/test_fused.py."""

from pathlib import Path

import pytest

from flows.cli import app, guarded

ROOT = Path(__file__).parents[2]
FUSED = ("-o", "model.framework=fused")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))


def factory(command: str, *options: str) -> int:
    return guarded(lambda: app([command, "tests/thimble/tiny.yaml", *options]))


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
