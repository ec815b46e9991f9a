"""The real phases on a million rows: ingest, format with near-duplicate removal, split.

    python -m tests.bench.million /tmp/rows/1000000 --workers 1 2
    python -m tests.bench.million /tmp/rows/100000 --engine ray --cluster      (an environment that has Ray)

Every configuration runs in a process of its own, watched from outside; all must give the same digests.
"""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from core.artifacts import file_digest
from core.data.config import FormatConfig, QualityConfig, SourceConfig, SplitConfig
from core.data.formatting import format_records
from core.data.ingest import ingest
from core.data.split import split
from core.data.workers import Workers, open_workers
from tests.bench.measure import Usage, Watch, machine, measure, shown

REPORT = Path(__file__).parent / "reports" / "2026-11-21-million-rows.md"
NAMES = ("train", "val", "test")


class Stopwatch:
    """Seconds and memory of each phase; progress on standard error."""

    def __init__(self) -> None:
        self.phases: dict[str, dict[str, float]] = {}

    @contextlib.contextmanager
    def phase(self, name: str, rows: int) -> Iterator[None]:
        """Time a phase that goes through this many rows."""
        watch, began = Watch(os.getpid()), time.perf_counter()
        before = watch.now()
        yield
        seconds = time.perf_counter() - began
        cpu = watch.now() - before
        watch.stop()
        self.phases[name] = {
            "seconds": round(seconds, 1),
            "cpu": round(cpu, 1),
            "rows_per_s": round(rows / seconds),
            "peak_mib": round(watch.rss / 2**20),
            "peak_pss_mib": round(watch.pss / 2**20),
        }
        print(name, self.phases[name], file=sys.stderr, flush=True)


def run_phases(rows: Path, work: Path, workers: Workers) -> dict[str, Any]:
    """Run all phases once; return what they took and what they gave."""
    total = int(json.loads((rows / "summary.json").read_text())["rows"])
    watch = Stopwatch()
    corpus, dataset, splits = work / "corpus.parquet", work / "dataset.parquet", work / "splits"
    with watch.phase("ingest", total):
        ingest([SourceConfig(path=str(rows / "rows"))], corpus, base=work, cache=work / "cache")
    with watch.phase("format and dedup", total):
        formatted = format_records(
            corpus, dataset, work / "rejected.jsonl", FormatConfig(), QualityConfig(), workers=workers
        )
    with watch.phase("split", total):
        report = split(dataset, splits, SplitConfig(), workers=workers, formatted=formatted)
    return {
        "phases": watch.phases,
        "counts": {
            "rows": formatted.rows,
            "rejected": formatted.rejected,
            "duplicates": formatted.duplicates,
            "near-duplicates": formatted.near_duplicates,
            "kept": formatted.kept,
            **{name: getattr(report, name) for name in NAMES},
            "rows with personal data": formatted.quality.pii.rows if formatted.quality else 0,
        },
        "leakage": {pair: shared.model_dump() for pair, shared in report.leakage.items()},
        "digests": {name: file_digest(splits / f"{name}.jsonl") for name in NAMES},
    }


@contextlib.contextmanager
def two_nodes(wanted: bool) -> Iterator[str | None]:
    """Start a Ray cluster with a head that computes nothing and two nodes of one processor, if wanted."""
    if not wanted:
        yield None
        return
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    try:
        yield cluster.address
    finally:
        cluster.shutdown()


def child(given: argparse.Namespace) -> None:
    """Run the phases in this process and print the outcome as one JSON line."""
    with (
        tempfile.TemporaryDirectory(prefix="million-", dir=given.scratch) as work,
        two_nodes(given.cluster) as address,
        open_workers(given.engine, None if address else given.workers[0], address) as workers,
    ):
        print(json.dumps(run_phases(given.rows, Path(work), workers)))


def main() -> None:
    """Run every configuration in a process of its own and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path, help="folder written by make_rows")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--engine", choices=("local", "ray"), default="local")
    parser.add_argument("--cluster", action="store_true", help="with ray: two nodes instead of one")
    parser.add_argument("--scratch", type=Path, default=None, help="where intermediate files go")
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given)
        return
    outcomes = []
    for count in given.workers:
        command = _command(given, count)
        with tempfile.NamedTemporaryFile("r", suffix=".log") as log:
            usage = measure(command, log=Path(log.name), env={"RAY_USAGE_STATS_ENABLED": "0"})
        outcome = json.loads(usage.output.splitlines()[-1])
        print(count, usage._replace(output=""), outcome, flush=True)
        outcomes.append((count, usage, outcome))
    _write(given, outcomes)
    if len({json.dumps(outcome["digests"]) for _, _, outcome in outcomes}) > 1:
        raise SystemExit("the splits depend on the number of workers")


def _command(given: argparse.Namespace, count: int) -> list[str]:
    command = [
        sys.executable,
        "-m",
        "tests.bench.million",
        str(given.rows),
        "--child",
        "--workers",
        str(count),
    ]
    command += ["--engine", given.engine, *(["--cluster"] if given.cluster else [])]
    return command + (["--scratch", str(given.scratch)] if given.scratch else [])


def _write(given: argparse.Namespace, outcomes: Sequence[tuple[int, Usage, dict[str, Any]]]) -> None:
    cluster = ", a cluster of two nodes" if given.cluster else ""
    lines = [
        f"## {outcomes[0][2]['counts']['rows']:,} rows, engine {given.engine}{cluster}",
        "",
        machine(),
        "",
    ]
    lines += ["| workers | phase | wall s | CPU s | rows/s | peak RSS MiB | peak PSS MiB |"]
    lines += ["| ---: | --- | ---: | ---: | ---: | ---: | ---: |"]
    for count, usage, outcome in outcomes:
        for name, took in outcome["phases"].items():
            cells = [count, name, *(f"{value:,}" for value in took.values())]
            lines.append(f"| {' | '.join(map(str, cells))} |")
        whole = [f"{usage.wall:,.1f}", f"{usage.cpu:,.1f}", f"{outcome['counts']['rows'] / usage.wall:,.0f}"]
        peaks = [f"{usage.rss / 2**20:,.0f}", f"{usage.pss / 2**20:,.0f}"]
        lines.append(f"| {count} | **all, with start-up** | {' | '.join([*whole, *peaks])} |")
    lines += [
        "",
        f"What came out: {outcomes[0][2]['counts']}",
        "",
        f"Leakage: {outcomes[0][2]['leakage']}",
        "",
    ]
    for count, _, outcome in outcomes:
        lines += [f"Digests with {count}:", "", *(f"    {n} {d}" for n, d in outcome["digests"].items()), ""]
    lines += ["Commands:", "", *(f"    {shown(_command(given, count))}" for count, _, _ in outcomes), ""]
    with given.report.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
