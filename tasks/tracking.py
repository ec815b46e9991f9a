"""The one door to MLflow.

One parent run per factory run, one nested run per phase. Only finite numbers, settings, and
files with their digests go through; the environment and credentials never do.
"""

import math
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.exceptions import MlflowException
from pydantic import BaseModel

from tasks.addresses import without_credentials, without_secrets
from tasks.data_inputs import DataInput, columns_of

PARAM_BATCH = 100
LONGEST_NAME = 200
"""MLflow takes 250 characters of a metric's name."""
MOST_KEYS = 50
"""A mapping of more entries, such as rows by file, is in the report's JSON; as metrics it would bury the rest."""
METRIC_BATCH = 500
FLOW_RUN = "prefect.flow_run"
VIEW_TAG = "mlflow.sharedViewState.gates"


def _now() -> int:
    return int(time.time() * 1000)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Turn nested settings or reports into dotted keys; long lists become their text."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    if isinstance(value, dict):
        found: dict[str, Any] = {}
        for key, inner in value.items():
            found.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
        return found
    return {prefix: value}


def numbers(report: BaseModel, prefix: str) -> dict[str, float]:
    """Pick the finite scalar numbers of a report, under MLflow-safe names; wide mappings stay out."""
    return dict(_numbers(without_secrets(report.model_dump(mode="json")), prefix))


def _numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items() if len(value) <= MOST_KEYS else ():
            # A slash would make MLflow file "train/test" under "train".
            yield from _numbers(inner, f"{name}.{str(key).replace('/', '_')}")
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield _safe(name), float(value)


def _safe(key: str) -> str:
    """Return a name MLflow takes: it refuses some characters, and names that would be odd paths."""
    plain = "".join(c if c.isalnum() or c in "_-. /" else "_" for c in key)[:LONGEST_NAME]
    return "/".join(part for part in plain.split("/") if part.strip(".")).lstrip(".") or "_"


class PhaseRun:
    """One phase's nested run; also the metric sink of its long computations."""

    def __init__(self, client: MlflowClient, run_id: str, max_file_mb: int) -> None:
        """Wrap an open nested run."""
        self.client, self.run_id, self.max_bytes = client, run_id, max_file_mb << 20
        self._pending: list[Metric] = []

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Buffer one step's metrics; single writes cost 20 ms each, batches almost nothing."""
        now = _now()
        self._pending += [
            Metric(_safe(k), float(v), now, step) for k, v in metrics.items() if math.isfinite(v)
        ]
        if len(self._pending) >= METRIC_BATCH:
            self.flush()

    def flush(self) -> None:
        """Write buffered metrics."""
        for first in range(0, len(self._pending), METRIC_BATCH):
            self.client.log_batch(self.run_id, metrics=self._pending[first : first + METRIC_BATCH])
        self._pending = []

    def report(self, phase: str, report: BaseModel) -> None:
        """Log a phase's report: its numbers as metrics, all of it as JSON."""
        self.log(0, numbers(report, phase))
        self.flush()
        content = without_secrets(report.model_dump(mode="json"))
        self.client.log_dict(self.run_id, content, f"{phase}-report.json")

    def params(self, values: BaseModel | dict[str, Any], prefix: str) -> None:
        """Log settings."""
        _log_params(self.client, self.run_id, flatten(values, prefix))

    def file(self, path: Path, digest: str, *, stays_here: bool = False) -> None:
        """Log a file or folder with its digest; what is too large, or must stay, is recorded by digest alone."""
        self.client.set_tag(self.run_id, f"digest.{_safe(path.name)}", digest)
        size = sum(p.stat().st_size for p in ([path] if path.is_file() else path.rglob("*")) if p.is_file())
        if size > self.max_bytes or stays_here:
            self.client.set_tag(self.run_id, f"left_on_disk.{_safe(path.name)}", str(path))
        elif path.is_file():
            self.client.log_artifact(self.run_id, str(path))
        else:
            self.client.log_artifacts(self.run_id, str(path), path.name)

    def table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Log rows as a table the MLflow page shows."""
        if rows:
            columns = {key: [row.get(key) for row in rows] for key in rows[0]}
            self.client.log_table(self.run_id, columns, f"{name}.json")

    def page(self, html: str, name: str) -> None:
        """Log a self-contained page, which MLflow shows as it is."""
        self.client.log_text(self.run_id, html, f"{name}.html")

    def dataset(self, path: Path, digest: str, context: str, rows: int | None = None) -> None:
        """Log a data file of ours as the run's input."""
        data = DataInput(path.name, digest, str(path), rows, columns_of(path))
        self.datasets([data], context)

    def datasets(self, data: Sequence[DataInput], context: str) -> None:
        """Log what the run reads: where it lies, its digest, rows and columns.

        Args:
            data: The inputs.
            context: What they are read for, such as training or evaluation.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        tags = [InputTag("mlflow.data.context", context)]
        entities = [
            Dataset(
                name=one.name[:LONGEST_NAME],
                # MLflow keeps 36 characters of a digest, and insists on one.
                digest=one.digest.removeprefix("sha256:")[:36] or "unknown",
                source_type=one.source_type,
                source=one.source_json,
                schema=one.schema_json,
                profile=one.profile_json,
            )
            for one in data
        ]
        if entities:
            self.client.log_inputs(self.run_id, datasets=[DatasetInput(entity, tags) for entity in entities])


def _log_params(client: MlflowClient, run_id: str, values: dict[str, Any]) -> None:
    params = [Param(_safe(k), str(v)[:6000]) for k, v in without_secrets(values).items()]
    for first in range(0, len(params), PARAM_BATCH):
        client.log_batch(run_id, params=params[first : first + PARAM_BATCH])


class Tracker:
    """Records one factory run."""

    def __init__(self, uri: str, experiment: str, artifacts: Path | None, *, max_file_mb: int = 512) -> None:
        """Open the store and the experiment.

        Args:
            uri: A tracking server's URL, or a database URI.
            experiment: Name of the experiment; made if absent.
            artifacts: Where a local store keeps logged files; None leaves it to the server.
            max_file_mb: Larger files are recorded by digest instead of copied.
        """
        self.client, self.uri, self.max_file_mb = MlflowClient(tracking_uri=uri), uri, max_file_mb
        self.interrupted: list[str] = []
        """Prefect flow runs of this machine whose process was killed."""
        found = self.client.get_experiment_by_name(experiment)
        if found and found.lifecycle_stage == "deleted":
            self.client.restore_experiment(found.experiment_id)
        place = (artifacts / experiment).resolve().as_uri() if artifacts else None
        self.experiment_id: str = (
            found.experiment_id if found else self.client.create_experiment(experiment, place)
        )
        self.run_id = ""
        self._close_dead_runs()

    def start(self, name: str, settings: BaseModel) -> None:
        """Open the parent run with the resolved settings."""
        tags = {"mlflow.runName": name, "factory.host": socket.gethostname(), "factory.pid": str(os.getpid()),
                "status": "running"}  # fmt: skip
        self.run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id
        _log_params(self.client, self.run_id, flatten(settings))

    @contextmanager
    def phase(self, name: str) -> Iterator[PhaseRun]:
        """Open a nested run for a phase and close it with the phase's outcome."""
        tags = {"mlflow.parentRunId": self.run_id, "mlflow.runName": name, "phase": name}
        run_id = self.client.create_run(self.experiment_id, tags=tags, run_name=name).info.run_id
        run = PhaseRun(self.client, run_id, self.max_file_mb)
        try:
            yield run
        except BaseException as error:
            self.client.set_tag(run_id, "error", str(error)[:4000] or type(error).__name__)
            self.client.set_terminated(run_id, "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise
        run.flush()
        self.client.set_tag(self.run_id, f"phase.{name}", "done")
        self.client.set_terminated(run_id, "FINISHED")

    def reused(self, phase: str, run_id: str) -> None:
        """Note that a phase's earlier result still holds, and which run made it."""
        self.client.set_tag(self.run_id, f"phase.{phase}", f"reused from run {run_id}")

    def gate(self, name: str, status: str, observed: dict[str, float], reason: str | None) -> None:
        """Record a verdict: the tag people filter by, and the numbers behind it."""
        now = _now()
        values = {
            f"gate.{name}": float(status != "blocked"),
            **{f"gate.{name}.{k}": v for k, v in observed.items()},
        }
        metrics = [Metric(_safe(k), v, now, 0) for k, v in values.items() if math.isfinite(v)]
        tags = [RunTag(f"gate.{name}", status)]
        if reason is not None:
            tags.append(RunTag(f"gate.{name}.waiver", reason))
        self.client.log_batch(self.run_id, metrics=metrics, tags=tags)

    @property
    def link(self) -> str:
        """Where a person finds the parent run."""
        if self.uri.startswith("http"):
            return f"{without_credentials(self.uri)}/#/experiments/{self.experiment_id}/runs/{self.run_id}"
        return f"run {self.run_id}, after: factory up"

    def describe(self, markdown: str) -> None:
        """Set the text at the top of the run's page."""
        self.client.set_tag(self.run_id, "mlflow.note.content", markdown)

    def tag(self, key: str, value: str) -> None:
        """Tag the parent run."""
        self.client.set_tag(self.run_id, key, value)

    def file(self, path: Path, folder: str = "") -> None:
        """Log one file of the parent run."""
        self.client.log_artifact(self.run_id, str(path), folder or None)

    def table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Log a table of the parent run."""
        PhaseRun(self.client, self.run_id, self.max_file_mb).table(rows, name)

    def finish(self, status: str, name: str) -> None:
        """Close the parent run; the verdict becomes part of its name."""
        self.client.set_tag(self.run_id, "status", status)
        self.client.set_tag(self.run_id, "mlflow.runName", name)
        self.client.set_terminated(self.run_id, "FINISHED" if status in ("passed", "partial") else "FAILED")

    def register(self, name: str, folder: Path, alias: str, tags: dict[str, str]) -> str:
        """Register a bundle and point the alias at it; return the version.

        The version's source is the bundle as logged with the run, so that it can be fetched
        from the registry alone; files beyond the size limit stay where they are, named in a tag.
        """
        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        left = [p for p in folder.iterdir() if p.stat().st_size > self.max_file_mb << 20]
        for path in folder.iterdir():
            if path not in left:
                self.client.log_artifact(self.run_id, str(path), "bundle")
        tags = tags | {f"left_on_disk.{_safe(path.name)}": str(path) for path in left}
        source = f"{self.client.get_run(self.run_id).info.artifact_uri}/bundle"
        version = str(self.client.create_model_version(name, source, self.run_id, tags=tags).version)
        self.client.set_registered_model_alias(name, alias, version)
        return version

    def is_registered(self, name: str, alias: str, version: str, tags: dict[str, str]) -> bool:
        """Tell whether the alias points at this version, and the version is of what the tags say."""
        try:
            found = self.client.get_model_version_by_alias(name, alias)
        except MlflowException:
            return False
        return str(found.version) == version and tags.items() <= found.tags.items()

    def gates_view(self, gates: tuple[str, ...]) -> None:
        """Give the experiment a ready table with one column per gate."""
        columns = ["tags.`status`", *(f"tags.`gate.{gate}`" for gate in gates)]
        state = (
            '{{"selectedColumns": [{}], "orderByKey": "attributes.start_time", "orderByAsc": false}}'.format(
                ", ".join(f'"{c}"' for c in columns)
            )
        )
        self.client.set_experiment_tag(self.experiment_id, VIEW_TAG, state)

    def _close_dead_runs(self) -> None:
        """End runs whose process was killed; they would stay "running" for ever."""
        mine = f"tags.`factory.host` = '{socket.gethostname()}' and attributes.status = 'RUNNING'"
        for run in self.client.search_runs([self.experiment_id], mine):
            pid = int(run.data.tags.get("factory.pid", "0"))
            if not psutil.pid_exists(pid):
                self._interrupt(run.info.run_id)
                self.interrupted += [run.data.tags[FLOW_RUN]] if run.data.tags.get(FLOW_RUN) else []

    def _interrupt(self, run_id: str) -> None:
        children = f"tags.`mlflow.parentRunId` = '{run_id}' and attributes.status = 'RUNNING'"
        for child in self.client.search_runs([self.experiment_id], children):
            self.client.set_terminated(child.info.run_id, "KILLED")
        self.client.set_tag(run_id, "status", "interrupted")
        self.client.set_terminated(run_id, "KILLED")
