"""What a phase reads, as MLflow lists it: where it lies, its digest, its rows and columns."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from core.data.reports import IngestReport
from core.data.sources.places import kind_of, local_path, redacted

LONGEST_ROW = 1 << 20
"""A first row beyond this is not parsed only to name its columns."""


class DataInput(NamedTuple):
    """One source or file."""

    name: str
    digest: str
    place: str
    """Path, address, or hf:NAME."""
    rows: int | None = None
    """None if nobody counted."""
    columns: Mapping[str, Any] = {}
    """MLflow's description of each column, by its name."""

    @property
    def source_type(self) -> str:
        """MLflow's name of the kind of place."""
        match kind_of(self.place):
            case "hub":
                return "hugging_face"
            case "files":
                return "local"
        scheme = self.place.partition("://")[0]
        return {"https": "http"}.get(scheme, scheme)

    @property
    def source_json(self) -> str:
        """MLflow's description of the place."""
        match self.source_type:
            case "hugging_face":
                name, _, config = self.place.removeprefix("hf:").partition(":")
                where: dict[str, Any] = {"path": name, "config_name": config or None}
            case "http":
                where = {"url": redacted(self.place)}
            case "local":
                where = {"uri": f"file://{local_path(self.place)}"}
            case _:
                where = {"uri": redacted(self.place)}
        return json.dumps(where)

    @property
    def profile_json(self) -> str | None:
        """Number of rows, if it is known."""
        return None if self.rows is None else json.dumps({"num_rows": self.rows})

    @property
    def schema_json(self) -> str | None:
        """Columns in MLflow's notation, if they are known."""
        columns = [{"name": name, **kind, "required": True} for name, kind in self.columns.items()]
        return json.dumps({"mlflow_colspec": columns}) if columns else None


def source_inputs(report: IngestReport, base: Path) -> list[DataInput]:
    """Return the sources of a run; relative paths start from ``base``."""
    return [
        DataInput(
            name=redacted(source.path),
            digest=source.digest,
            place=source.path if kind_of(source.path) != "files" else str(base / local_path(source.path)),
            rows=source.rows,
        )
        for source in report.sources
    ]


def columns_of(path: Path) -> dict[str, Any]:
    """Describe the columns of a JSONL file that this program wrote, from its first row; {} if it has none."""
    with path.open("rb") as lines:
        first = lines.readline(LONGEST_ROW)
    try:
        row = json.loads(first)
    except ValueError:
        return {}
    return {name: _kind(value) for name, value in row.items()} if isinstance(row, dict) else {}


def _kind(value: Any) -> dict[str, Any]:
    """Describe a JSON value; what another row may hold there is anybody's guess."""
    match value:
        case bool():
            return {"type": "boolean"}
        case int():
            return {"type": "long"}
        case float():
            return {"type": "double"}
        case str():
            return {"type": "string"}
        case [first, *_]:
            return {"type": "array", "items": _kind(first)}
        case dict() if value:
            parts = {str(name): {**_kind(part), "required": False} for name, part in value.items()}
            return {"type": "object", "properties": parts}
    return {"type": "any"}
