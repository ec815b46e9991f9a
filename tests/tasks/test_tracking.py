"""What goes through the door to MLflow, and what does not."""

import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from core.artifacts import file_digest
from core.config import Frozen
from tasks.tracking import Tracker, flatten, numbers


class Inner(Frozen):
    rate: float = 0.5
    names: tuple[str, ...] = ("a", "b")


class Outer(Frozen):
    inner: Inner = Inner()
    flag: bool = True
    text: str | None = None


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mlflow")


def tracker(home: Path, **settings) -> Tracker:
    made = Tracker(f"sqlite:///{home / 'mlflow.db'}", "exp", home / "artifacts", **settings)
    made.start("run", Outer())
    return made


def test_settings_are_flattened_to_dotted_keys():
    assert flatten(Outer()) == {"inner.rate": 0.5, "inner.names": ["a", "b"], "flag": True, "text": None}


def test_only_finite_numbers_become_metrics():
    broken = Inner.model_construct(rate=float("nan"), names=())
    assert numbers(Outer(), "p") == {"p.inner.rate": 0.5}
    assert numbers(broken, "p") == {}


def test_a_large_file_is_recorded_by_digest_and_left_on_disk(home: Path, tmp_path: Path):
    large = tmp_path / "model.gguf"
    large.write_bytes(b"x" * (2 << 20))
    track = tracker(home, max_file_mb=1)
    with track.phase("quantize") as run:
        run.file(large, file_digest(large))
    client = MlflowClient(track.uri)
    tags = client.get_run(run.run_id).data.tags
    assert tags["digest.model.gguf"] == file_digest(large)
    assert tags["left_on_disk.model.gguf"] == str(large)
    assert client.list_artifacts(run.run_id) == []


def test_a_phase_that_fails_closes_its_run_with_the_reason(home: Path):
    track = tracker(home)
    with pytest.raises(RuntimeError), track.phase("split") as run:
        raise RuntimeError("too few rows")
    found = MlflowClient(track.uri).get_run(run.run_id)
    assert found.info.status == "FAILED"
    assert found.data.tags["error"] == "too few rows"
    assert found.data.tags["mlflow.parentRunId"] == track.run_id


def test_runs_of_dead_processes_are_closed_and_others_left_alone(home: Path):
    mine = tracker(home)
    gone = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    mine.tag("factory.pid", gone.stdout.strip())
    alive = tracker(home)
    client = MlflowClient(mine.uri)
    assert client.get_run(mine.run_id).info.status == "KILLED"
    assert client.get_run(mine.run_id).data.tags["status"] == "interrupted"
    assert client.get_run(alive.run_id).info.status == "RUNNING"


def test_registering_sets_the_alias_to_a_copy_of_the_bundle(home: Path, tmp_path: Path):
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/model.gguf").write_text("v1")
    track = tracker(home)
    first = track.register("tutor", tmp_path / "bundle", "champion", {"bundle_digest": "1"})
    (tmp_path / "bundle/model.gguf").write_text("v2")
    second_run = tracker(home)
    second = second_run.register("tutor", tmp_path / "bundle", "champion", {"bundle_digest": "2"})
    found = MlflowClient(track.uri).get_model_version_by_alias("tutor", "champion")
    assert (first, second, found.version) == ("1", "2", 2)
    assert (Path(found.source.removeprefix("file://")) / "model.gguf").read_text() == "v2"
    assert second_run.is_registered("tutor", "champion", "2", {"bundle_digest": "2"})
    assert not second_run.is_registered("tutor", "champion", "2", {"bundle_digest": "1"})
    assert not second_run.is_registered("other", "champion", "1", {})
