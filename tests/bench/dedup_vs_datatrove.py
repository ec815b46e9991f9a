"""Near-duplicate removal: core.data.near beside datatrove's MinHash pipeline, on the same rows and cores.

    python -m tests.bench.dedup_vs_datatrove /tmp/rows/100000 --datatrove /tmp/dt/bin/python

Runs every contender in turn and then in reverse order, so that none has the quiet end of the machine.
"""

import argparse
import datetime
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from tests.bench.judge import Quality, judge, load
from tests.bench.measure import Usage, machine, measure, shown

HERE = Path(__file__).parent
REPORT = HERE / "reports" / "2026-11-21-dedup.md"
PEERS = {
    "datatrove, its defaults (5-grams, spaCy words)": ["--ngrams", "5"],
    "datatrove, word 3-grams": ["--ngrams", "3"],
    "datatrove, word 3-grams, words split at spaces": ["--ngrams", "3", "--words", "split"],
}
OURS = {
    "Data Factory (word 3-grams, confirmed)": [],
    "Data Factory, near_numbers: ignore": ["--numbers", "ignore"],
}


class Contender(NamedTuple):
    """One program with its settings."""

    name: str
    workers: int
    command: list[str]


class Outcome(NamedTuple):
    """What a contender did in one run."""

    usage: Usage
    stages: dict[str, float]
    quality: Quality


def contenders(rows: Path, out: Path, python: str, workers: Sequence[int], chosen: str) -> list[Contender]:
    """List who takes part."""
    texts = str(rows / "texts")
    found = []
    for count in workers:
        for name, flags in PEERS.items():
            script = [python, str(HERE / "datatrove_minhash.py"), texts, str(out), "--workers", str(count)]
            found.append(Contender(name, count, [*script, *flags]))
        ours = [sys.executable, "-m", "tests.bench.our_near", texts, str(out), "--workers", str(count)]
        found += [Contender(name, count, [*ours, *flags]) for name, flags in OURS.items()]
    return [one for one in found if re.search(chosen, one.name)]


def removed(out: Path) -> set[int]:
    """Read the ids that a contender removed."""
    if (out / "removed.txt").exists():
        return {int(line) for line in (out / "removed.txt").read_text().split()}
    files = (out / "removed").glob("*.jsonl")
    return {int(json.loads(line)["id"]) for file in files for line in file.open(encoding="utf-8")}


def main() -> None:
    """Run, print as it goes, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", type=Path)
    parser.add_argument("--datatrove", default="/tmp/dt/bin/python", help="Python that has datatrove")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--only", default="", help="contenders whose name matches this pattern")
    parser.add_argument("--once", action="store_true", help="one run each instead of there and back")
    parser.add_argument("--report", type=Path, default=REPORT)
    given = parser.parse_args()
    planted = load(given.rows)
    with tempfile.TemporaryDirectory(prefix="dedup-") as scratch:
        out = Path(scratch) / "out"
        everyone = contenders(given.rows, out, given.datatrove, given.workers, given.only)
        outcomes: dict[tuple[str, int], list[Outcome]] = {(one.name, one.workers): [] for one in everyone}
        for one in everyone if given.once else [*everyone, *reversed(everyone)]:
            usage = measure(one.command, log=Path(scratch) / "log.txt")
            outcome = Outcome(usage, json.loads(usage.output), judge(planted, removed(out)))
            outcomes[one.name, one.workers].append(outcome)
            print(one.name, one.workers, _figures(given.rows, [outcome]), outcome.quality, flush=True)
    write(given.report, given.rows, given.datatrove, everyone, outcomes)


def _usable(rows: Path) -> int:
    summary = json.loads((rows / "summary.json").read_text())
    return int(summary["rows"]) - int(summary["counts"]["broken"])


def _figures(rows: Path, outcomes: Sequence[Outcome]) -> list[str]:
    cpu = mean(outcome.usage.cpu for outcome in outcomes)
    return [
        f"{mean(outcome.usage.wall for outcome in outcomes):.1f}",
        f"{cpu:.1f}",
        f"{_usable(rows) / cpu:,.0f}",
        f"{max(outcome.usage.rss for outcome in outcomes) / 2**20:,.0f}",
        f"{max(outcome.usage.pss for outcome in outcomes) / 2**20:,.0f}",
    ]


def write(
    report: Path,
    rows: Path,
    python: str,
    everyone: Sequence[Contender],
    outcomes: dict[tuple[str, int], list[Outcome]],
) -> None:
    """Add a section on these rows to the report."""
    speed = ["wall s", "CPU s", "rows per CPU s", "peak RSS MiB", "peak PSS MiB"]
    good = ["removed", "recall", "recall, same numbers", "precision (kept)", "precision (any)", "strangers"]
    lines = [f"## {_usable(rows):,} rows", "", machine(), "", f"{_versions(python)}. {_runs(outcomes)}", ""]
    lines += _table(["", "workers", *speed, *good], [_line(rows, one, outcomes) for one in everyone])
    lines += ["", "Share of planted pairs cut, by true similarity:", ""]
    first = next(iter(outcomes.values()))[0].quality.bands
    lines += _table(
        ["", *first],
        [
            [
                one.name,
                *(f"{share:.3f}" for share in outcomes[one.name, one.workers][0].quality.bands.values()),
            ]
            for one in everyone
            if one.workers == everyone[0].workers
        ],
    )
    lines += ["", "Seconds by stage (first run):", ""]
    lines += [f"- {one.name}, {one.workers}: {outcomes[one.name, one.workers][0].stages}" for one in everyone]
    lines += ["", "Commands:", "", *(f"    {shown(one.command)}" for one in everyone), ""]
    with report.open("a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


def _runs(outcomes: dict[tuple[str, int], list[Outcome]]) -> str:
    runs = len(next(iter(outcomes.values())))
    return "Run once" if runs == 1 else f"Means of {runs} runs in turn and back again"


def _line(rows: Path, one: Contender, outcomes: dict[tuple[str, int], list[Outcome]]) -> list[str]:
    runs = outcomes[one.name, one.workers]
    quality = runs[0].quality
    return [
        one.name,
        str(one.workers),
        *_figures(rows, runs),
        f"{quality.removed:,}",
        f"{quality.recall:.4f}",
        f"{quality.recall_same_numbers:.4f}",
        f"{quality.precise:.4f}",
        f"{quality.loose:.4f}",
        f"{quality.strangers}",
    ]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    marks = ["---", *("---:" for _ in head[1:])]
    return [f"| {' | '.join(cells)} |" for cells in [head, marks, *body]]


def _versions(python: str) -> str:
    code = "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in %r))"
    theirs = subprocess.check_output(
        [python, "-c", code % ["datatrove", "spacy", "numpy"]], text=True
    ).strip()
    ours = subprocess.check_output(
        [sys.executable, "-c", code % ["rensa", "numpy", "pyarrow"]], text=True
    ).strip()
    return f"{datetime.datetime.now(datetime.UTC).date()}; datatrove's environment: {theirs}; ours: {ours}"


if __name__ == "__main__":
    main()
