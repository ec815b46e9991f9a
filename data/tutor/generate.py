"""Write the tutor's question rows: ``python data/tutor/generate.py [--check]``.

The files are committed; this is how they came about, and the same seed gives the
same bytes on every machine.
"""

import argparse
import csv
import io
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.tutor.damage import DAMAGE, damaged
from data.tutor.rows import arithmetic_rows, conversation_rows, sharegpt_rows, unit_rows

HERE = Path(__file__).resolve().parent
SEED = 1957

Row = dict[str, Any]


def files() -> dict[str, str]:
    """Return the content of every file by name."""
    made = {
        "arithmetic.jsonl": arithmetic_rows(_rng("arithmetic")),
        "units.csv": unit_rows(_rng("units")),
        "facts.json": conversation_rows(("science", "geography"), _rng("facts")),
        "twi.jsonl": sharegpt_rows(("twi",), _rng("twi")),
    }
    rows = {name: damaged(good, DAMAGE[name], _rng(f"damage {name}")) for name, good in made.items()}
    return {name: _WRITERS[Path(name).suffix](content) for name, content in rows.items()}


def _rng(purpose: str) -> random.Random:
    # One generator per file: a change to one leaves the others as they are.
    return random.Random(f"{SEED} {purpose}")


def _line(row: Row) -> str:
    return json.dumps(row, ensure_ascii=False)


def _jsonl(rows: Sequence[Row]) -> str:
    return "".join(_line(row) + "\n" for row in rows)


def _json(rows: Sequence[Row]) -> str:
    return "[\n" + ",\n".join(_line(row) for row in rows) + "\n]\n"


def _csv(rows: Sequence[Row]) -> str:
    out = io.StringIO()
    columns = ("instruction", "input", "output", "topic", "language", "difficulty", "fact")
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


_WRITERS = {".jsonl": _jsonl, ".json": _json, ".csv": _csv}


def stale(made: dict[str, str], folder: Path = HERE) -> list[str]:
    """Return the names of files that are missing or differ from what is made here."""
    paths = {name: folder / name for name in made}
    return [n for n, p in paths.items() if not p.is_file() or p.read_bytes() != made[n].encode()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with --check tell whether they are up to date.

    Returns:
        0, or with --check 1 if a file differs.
    """
    parser = argparse.ArgumentParser(description="Write the tutor's question rows.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
    made = files()
    if parser.parse_args(arguments).check:
        different = stale(made)
        for name in different:
            print(f"{name} differs from what generate.py makes", file=sys.stderr)
        return 1 if different else 0
    for name, content in made.items():
        part = HERE / f".{name}.part"
        part.write_text(content, encoding="utf-8", newline="\n")
        part.replace(HERE / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
