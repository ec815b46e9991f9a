"""The ledger of test-set uses: nothing is lost, whoever else writes, and whatever a killed writer left."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import ResourceError
from tasks import test_uses
from tasks.test_uses import TestUse, TestUses, count_uses, record_use

ROOT = Path(__file__).parents[2]
ONE, OTHER = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def use(run: str = "r1", digest: str = ONE, arm: str = "tuned") -> TestUse:
    return TestUse(digest=digest, run=run, phase="evaluate", arm=arm, workspace="quickstart")


def test_no_ledger_no_use(tmp_path: Path):
    assert count_uses(tmp_path / "absent.jsonl", ONE) == TestUses(runs=0, evaluations=0)


def test_runs_and_evaluations_are_counted_for_each_test_set(tmp_path: Path):
    ledger = tmp_path / "home" / "uses.jsonl"
    for one in (use("r1"), use("r1", arm="Q8_0"), use("r2"), use("r3", digest=OTHER)):
        record_use(ledger, one)
    found = count_uses(ledger, ONE)
    assert (found.runs, found.evaluations) == (2, 3)
    assert found.first is not None and found.last is not None and found.first <= found.last
    assert count_uses(ledger, OTHER).runs == 1


def test_an_entry_says_who_used_what_when(tmp_path: Path):
    record_use(tmp_path / "uses.jsonl", use())
    entry = json.loads((tmp_path / "uses.jsonl").read_text())
    assert entry.pop("at").endswith("+00:00")
    assert entry == {
        "digest": ONE,
        "run": "r1",
        "phase": "evaluate",
        "arm": "tuned",
        "workspace": "quickstart",
    }


@pytest.mark.parametrize("torn", ['{"digest": "sha', "[1]", "17", "\x00\xff", "{}"])
def test_a_torn_last_line_costs_nothing_but_itself(tmp_path: Path, torn: str):
    ledger = tmp_path / "uses.jsonl"
    record_use(ledger, use("r1"))
    with ledger.open("a", encoding="latin-1") as stream:
        stream.write(torn)
    assert count_uses(ledger, ONE).evaluations == 1
    record_use(ledger, use("r2"))
    assert count_uses(ledger, ONE).runs == 2


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 400))
def test_a_ledger_cut_anywhere_keeps_every_whole_line(tmp_path_factory: pytest.TempPathFactory, cut: int):
    ledger = tmp_path_factory.mktemp("ledger") / "uses.jsonl"
    record_use(ledger, use("r1"))
    line = ledger.read_bytes()
    ledger.write_bytes((line * 3)[:cut])
    whole = sum((n + 1) * len(line) - 1 <= cut for n in range(3))
    assert count_uses(ledger, ONE).evaluations == whole
    record_use(ledger, use("r2"))
    assert count_uses(ledger, ONE).evaluations == whole + 1


def test_writers_at_the_same_time_lose_no_use(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from tasks.test_uses import TestUse, record_use\n"
        "for n in range(40): record_use(Path(sys.argv[1]), TestUse(digest=sys.argv[2], run=f'{sys.argv[3]}-{n}', "
        "phase='evaluate', arm='x' * 3000, workspace='w'))"
    )
    ledger = tmp_path / "uses.jsonl"
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(ledger), ONE, name], cwd=ROOT) for name in "abc"
    ]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found = count_uses(ledger, ONE)
    assert (found.runs, found.evaluations) == (120, 120)
    assert len(ledger.read_bytes().splitlines()) == 120


def test_a_writer_waits_for_the_one_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ledger = tmp_path / "uses.jsonl"
    monkeypatch.setattr(test_uses, "PATIENCE", 0.1)
    with FileLock(f"{ledger}.lock"), pytest.raises(ResourceError):
        record_use(ledger, use())
    assert count_uses(ledger, ONE).runs == 0
    record_use(ledger, use())
    assert count_uses(ledger, ONE).runs == 1


def test_a_ledger_that_cannot_be_written_is_one_message_with_the_way_on(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="FACTORY_HOME"):
        record_use(tmp_path / "file" / "uses.jsonl", use())


def test_names_that_are_no_unicode_are_recorded(tmp_path: Path):
    odd = use().model_copy(update={"workspace": "caf\udce9"})
    record_use(tmp_path / "uses.jsonl", odd)
    assert count_uses(tmp_path / "uses.jsonl", ONE).runs == 1
