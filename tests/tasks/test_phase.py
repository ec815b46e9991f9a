"""The phase decorator's own corners; its daily work is in the thimble."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest

from core.errors import ResourceError
from tasks.phase import PhaseRecord, disk_full_explained, recall
from tasks.workspace import Workspace

DIGEST = "sha256:" + "0" * 64


def context(root: Path) -> SimpleNamespace:
    return SimpleNamespace(workspace=Workspace(root))


def record(root: Path, **changes) -> None:
    fields = {
        "phase": "split",
        "key": "k",
        "result": {},
        "outputs": {},
        "tracked_as": "",
        "seconds": 1.0,
        "note": "",
    }
    path = Workspace(root).phase_record("split")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PhaseRecord.model_validate(fields | changes).model_dump_json())


def test_a_full_disk_is_one_message_with_the_way_on(tmp_path: Path):
    with (
        pytest.raises(ResourceError, match=r"disk is full(.|\n)*same command again"),
        disk_full_explained(context(tmp_path)),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_other_errors_of_the_system_stay_what_they_are(tmp_path: Path):
    with pytest.raises(PermissionError), disk_full_explained(context(tmp_path)):
        raise PermissionError(errno.EACCES, "no")


def test_a_record_is_recalled_only_for_its_key(tmp_path: Path):
    record(tmp_path)
    assert recall(context(tmp_path), "split", "k") is not None
    assert recall(context(tmp_path), "split", "other") is None


def test_a_changed_or_missing_output_forgets_the_phase(tmp_path: Path):
    (tmp_path / "x").write_text("x")
    record(tmp_path, outputs={"x": DIGEST})
    assert recall(context(tmp_path), "split", "k") is None
    record(tmp_path, outputs={"gone": DIGEST})
    assert recall(context(tmp_path), "split", "k") is None


@pytest.mark.parametrize("content", ["", "{", '{"phase": "split"}', "[]"])
def test_a_damaged_record_is_no_record(tmp_path: Path, content: str):
    record(tmp_path)
    Workspace(tmp_path).phase_record("split").write_text(content)
    assert recall(context(tmp_path), "split", "k") is None
