"""What goes through the door to MLflow, and what does not."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mlflow import MlflowClient
from mlflow.types.schema import Schema
from mlflow.utils.validation import _validate_metric_name

from core.artifacts import Splits, file_digest, write_jsonl
from core.config import Frozen
from gates.thresholds import GatesConfig
from tasks.addresses import without_secrets
from tasks.context import RunContext
from tasks.data_figures import format_figures, track_format, track_ingest, track_reads, track_split
from tasks.data_inputs import DataInput, columns_of
from tasks.events import Watcher
from tasks.tracking import MOST_KEYS, PhaseRun, Tracker, _safe, flatten, numbers
from tasks.workspace import Workspace
from tests.tasks.report import data_reports


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


# What phases read and show


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    folder = tmp_path_factory.mktemp("splits")
    for name, count in (("train", 3), ("val", 1), ("test", 2)):
        write_jsonl(folder / f"{name}.jsonl", (row(n) for n in range(count)))
    return Splits.of(folder)


def row(number: int) -> dict[str, object]:
    turns = [{"role": "user", "content": "Q?", "tool_calls": [], "name": None}]
    return {
        "id": f"r{number}",
        "conversations": turns,
        "metadata": {},
        "origin": {"file": "a", "line": number},
    }


def surroundings(track: Tracker, run: PhaseRun, root: Path) -> RunContext:
    context = RunContext(
        name="tutor",
        workspace=Workspace(root),
        tracker=track,
        watcher=Quiet(),
        base=root,
        gates=GatesConfig(),
    )
    context.phase_run = run
    context.reports["split"] = data_reports.SPLIT
    return context


class Quiet(Watcher):
    """Hears nothing."""


def inputs(track: Tracker, run: PhaseRun) -> dict[str, tuple[Any, str]]:
    found = MlflowClient(track.uri).get_run(run.run_id).inputs.dataset_inputs
    return {one.dataset.name: (one.dataset, one.tags[0].value) for one in found}


def test_a_split_is_an_input_with_digest_rows_and_columns(home: Path, tmp_path: Path, splits: Splits):
    track = tracker(home)
    with track.phase("finetune") as run:
        track_reads(surroundings(track, run, tmp_path), splits, "train", "val")
    found = inputs(track, run)
    assert {name: purpose for name, (_, purpose) in found.items()} == {
        "train.jsonl": "training",
        "val.jsonl": "validation",
    }
    train = found["train.jsonl"][0]
    assert train.digest == file_digest(splits.train).removeprefix("sha256:")[:36]
    assert json.loads(train.profile) == {"num_rows": data_reports.SPLIT.train}
    assert json.loads(train.source) == {"uri": f"file://{splits.train}"}
    columns = Schema.from_json(json.dumps(json.loads(train.schema)["mlflow_colspec"]))
    assert columns.input_names() == ["id", "conversations", "metadata", "origin"]


def test_sources_are_inputs_and_nothing_secret_goes_through(home: Path, tmp_path: Path):
    track = tracker(home)
    with track.phase("ingest") as run:
        track_ingest(surroundings(track, run, tmp_path), data_reports.INGEST)
        run.report("ingest", data_reports.INGEST)
        run.report("format", data_reports.FORMATTED)
        run.params(data_reports.INGEST, "sources")
    found = inputs(track, run)
    local = found["data/tutor/*.jsonl"][0]
    assert local.source_type == "local" and json.loads(local.source)["uri"].endswith("/data/tutor/*.jsonl")
    assert json.loads(local.profile) == {"num_rows": 2400} and local.digest == "c" * 36
    remote = next(data for name, (data, _) in found.items() if name.startswith("s3://"))
    assert remote.source_type == "s3" and remote.digest == "unknown"
    client = MlflowClient(track.uri)
    everything = repr(client.get_run(run.run_id).to_dictionary()) + repr(found)
    folder = Path(client.download_artifacts(run.run_id, "", str(tmp_path)))
    everything += "".join(path.read_text() for path in folder.rglob("*.json"))
    assert "geography-and-history" in everything
    assert "secret" not in everything and "=abc" not in everything


def test_format_logs_shares_and_tables(home: Path, tmp_path: Path):
    track = tracker(home)
    with track.phase("format") as run:
        track_format(surroundings(track, run, tmp_path), data_reports.FORMATTED)
    client = MlflowClient(track.uri)
    metrics = client.get_run(run.run_id).data.metrics
    assert metrics["format.share.near_duplicates"] == pytest.approx(30 / 3110)
    assert metrics["format.language_share.tw"] == pytest.approx(260 / 2000)
    assert metrics["format.share_of_kept.pii"] == pytest.approx(31 / 2600)
    assert {"rejected-reasons.json", "languages.json"} <= {f.path for f in client.list_artifacts(run.run_id)}


def test_what_was_not_looked_for_is_no_metric():
    quality = data_reports.QUALITY.model_copy(
        update={"pii": data_reports.PII.model_copy(update={"looked": False}), "language_sample": 0}
    )
    figures = format_figures(data_reports.FORMATTED.model_copy(update={"quality": quality}))
    assert not [name for name in figures if "pii" in name or "language" in name]
    bare = format_figures(data_reports.FORMATTED.model_copy(update={"quality": None, "near_threshold": None}))
    assert set(bare) == {"format.share.kept", "format.share.rejected", "format.share.duplicates"}


def test_split_logs_the_data_page(home: Path, tmp_path: Path):
    track = tracker(home)
    with track.phase("split") as run:
        track_split(surroundings(track, run, tmp_path), data_reports.SPLIT)
    client = MlflowClient(track.uri)
    page = Path(client.download_artifacts(run.run_id, "data-report.html", str(tmp_path))).read_text()
    assert page.startswith("<!doctype html>") and "What they share" in page
    assert client.get_run(run.run_id).data.metrics["split.share.test"] == 0.1


def test_without_a_tracked_phase_nothing_is_logged(home: Path, tmp_path: Path, splits: Splits):
    track = tracker(home)
    context = surroundings(track, PhaseRun(track.client, track.run_id, 1), tmp_path)
    context.phase_run = None
    track_ingest(context, data_reports.INGEST)
    track_format(context, data_reports.FORMATTED)
    track_split(context, data_reports.SPLIT)
    track_reads(context, splits, "test")
    assert inputs(track, PhaseRun(track.client, track.run_id, 1)) == {}


def test_nested_reports_become_dotted_metrics():
    found = numbers(data_reports.SPLIT, "split")
    assert found["split.leakage.train_test.near"] == 0
    assert found["split.clusters"] == 2511
    assert numbers(data_reports.FORMATTED, "format")["format.quality.pii.findings.email"] == 22


class Counts(Frozen):
    by: dict[str, int]


def test_wide_mappings_are_no_metrics():
    assert numbers(Counts(by={f"file {n}": n for n in range(MOST_KEYS + 1)}), "p") == {}
    assert len(numbers(Counts(by={f"file {n}": n for n in range(MOST_KEYS)}), "p")) == MOST_KEYS


@settings(max_examples=40, deadline=None)
@given(key=st.text(max_size=300))
@example(key="http://host//x/../y")
@example(key="../..")
@example(key="x" * 300)
def test_any_name_of_a_count_is_one_that_mlflow_takes(key: str):
    [name] = numbers(Counts(by={key: 1}), "format.reasons")
    _validate_metric_name(name)
    [logged] = [_safe(key)]
    _validate_metric_name(logged)


PLACES = (
    ("/data/a.jsonl", "local", {"uri": "file:///data/a.jsonl"}),
    ("file:///data/a.jsonl", "local", {"uri": "file:///data/a.jsonl"}),
    ("hf:wikitext:raw", "hugging_face", {"path": "wikitext", "config_name": "raw"}),
    ("hf:owner/name", "hugging_face", {"path": "owner/name", "config_name": None}),
    ("https://u:p@host/a.csv?token=t", "http", {"url": "https://host/a.csv"}),
    ("s3://key:secret@bucket/a", "s3", {"uri": "s3://bucket/a"}),
    ("gs://bucket/a#f", "gs", {"uri": "gs://bucket/a"}),
)


@pytest.mark.parametrize(("place", "kind", "where"), PLACES)
def test_places_are_named_as_mlflow_names_them(place: str, kind: str, where: dict[str, str | None]):
    data = DataInput("n", "d", place)
    assert (data.source_type, json.loads(data.source_json)) == (kind, where)
    assert data.profile_json is None and data.schema_json is None


@pytest.mark.parametrize("content", [b"", b"\n", b"[1]\n", b"{", b"\xff\xfe"])
def test_a_file_without_a_readable_first_row_has_no_columns(tmp_path: Path, content: bytes):
    (tmp_path / "a.jsonl").write_bytes(content)
    assert columns_of(tmp_path / "a.jsonl") == {}


def test_secrets_leave_texts_names_and_lists_and_nothing_else_does():
    given = {"s3://u:p@b/x": ["https://h/a?X-Amz-Signature=k", "mail a@b.c", "why?", 3, None]}
    assert without_secrets(given) == {"s3://b/x": ["https://h/a", "mail a@b.c", "why?", 3, None]}
