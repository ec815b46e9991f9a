"""Free main memory in containers: what the machine has, or what their limit leaves."""

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from core.models.fused.main_memory import free_main_memory

MIB = 1 << 20


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = type("Memory", (), {"available": 500 * MIB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def second(folder: Path, most: object, used: object, stat: str = "") -> Path:
    (folder / "memory.max").write_text(f"{most}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(stat)
    return folder


def first(folder: Path, most: object, used: object, stat: str = "") -> Path:
    place = folder / "memory"
    place.mkdir()
    (place / "memory.limit_in_bytes").write_text(f"{most}\n")
    (place / "memory.usage_in_bytes").write_text(f"{used}\n")
    (place / "memory.stat").write_text(stat)
    return folder


def test_without_control_groups_it_is_the_machines(tmp_path: Path):
    assert free_main_memory(tmp_path) == free_main_memory(tmp_path / "none") == 500 * MIB


@pytest.mark.parametrize("version", [first, second])
def test_a_limit_leaves_what_is_not_used(tmp_path: Path, version):
    assert free_main_memory(version(tmp_path, 300 * MIB, 100 * MIB)) == 200 * MIB


@pytest.mark.parametrize("version", [first, second])
def test_a_limit_beyond_the_machine_does_not_count(tmp_path: Path, version):
    assert free_main_memory(version(tmp_path, 2**63 - 4096, 100 * MIB)) == 500 * MIB


@pytest.mark.parametrize("version", [first, second])
def test_files_that_are_held_until_room_is_needed_are_free(tmp_path: Path, version):
    name = "total_inactive_file" if version is first else "inactive_file"
    stat = f"anon 7\ninactive_file_of_others 9\n{name} {60 * MIB}\nactive_file 5\n"
    assert free_main_memory(version(tmp_path, 300 * MIB, 100 * MIB, stat)) == 260 * MIB


@pytest.mark.parametrize("version", [first, second])
def test_a_container_beyond_its_limit_has_nothing(tmp_path: Path, version):
    assert free_main_memory(version(tmp_path, 100 * MIB, 101 * MIB)) == 0


def test_no_limit_is_none(tmp_path: Path):
    assert free_main_memory(second(tmp_path, "max", 100 * MIB)) == 500 * MIB


@pytest.mark.parametrize(("most", "used"), [("", 5), (5, ""), ("nonsense", 5)])
def test_a_file_that_cannot_be_read_limits_nothing(tmp_path: Path, most: object, used: object):
    assert free_main_memory(second(tmp_path, most, used, "nonsense")) == 500 * MIB


def job(folder: Path, line: str) -> Path:
    """Say which group this process is in."""
    (folder / "member").write_text(f"7:pids:/other\n{line}\n")
    return folder / "member"


@pytest.mark.parametrize(
    ("root", "limit", "used", "line"),
    [
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "4:cpu,memory:/a/b"),
        ("", "memory.max", "memory.current", "0::/a/b"),
    ],
)
@pytest.mark.parametrize("lowest", ["", "a", "a/b"])
def test_the_lowest_limit_above_a_job_counts(
    tmp_path: Path, root: str, limit: str, used: str, line: str, lowest: str
):
    for name in ("", "a", "a/b"):
        place = tmp_path / root / name
        place.mkdir(parents=True, exist_ok=True)
        (place / limit).write_text(str((200 if name == lowest else 450) * MIB))
        (place / used).write_text("0")
    assert free_main_memory(tmp_path, job(tmp_path, line)) == 200 * MIB


@pytest.mark.parametrize("line", ["", "nonsense", "0::/gone/away", "4:memory:/gone"])
def test_a_group_that_is_not_to_be_seen_leaves_the_containers_own_limit(tmp_path: Path, line: str):
    assert free_main_memory(second(tmp_path, 300 * MIB, 100 * MIB), job(tmp_path, line)) == 200 * MIB
    assert free_main_memory(tmp_path, tmp_path / "none") == 200 * MIB


def test_a_group_outside_of_what_is_mounted_is_not_asked(tmp_path: Path):
    for name, most in (("mount", 300), ("elsewhere", 50)):
        (tmp_path / name).mkdir()
        second(tmp_path / name, most * MIB, 0)
    assert free_main_memory(tmp_path / "mount", job(tmp_path, "0::/../elsewhere")) == 300 * MIB


def test_asking_needs_no_torch():
    code = "import sys, core.models.fused.main_memory; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
