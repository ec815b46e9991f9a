"""Handles, atomic writes and fingerprints."""

import hashlib
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from core.artifacts import (
    ArtifactRef,
    Corpus,
    PhaseResult,
    atomic_path,
    file_digest,
    fingerprint,
    path_digest,
    read_jsonl,
    source_digest,
    sweep_parts,
    write_json,
    write_jsonl,
)
from core.config import Frozen
from core.errors import ArtifactChanged


def test_file_digest_is_sha256_of_the_bytes(tmp_path: Path):
    file = tmp_path / "a.bin"
    file.write_bytes(b"\x00\xffhello")
    assert file_digest(file) == "sha256:" + hashlib.sha256(b"\x00\xffhello").hexdigest()


def test_folder_digest_sees_names_and_contents_but_not_its_place(tmp_path: Path):
    for name in ("one", "two"):
        (tmp_path / name / "sub").mkdir(parents=True)
        (tmp_path / name / "sub/x.txt").write_text("x")
    assert path_digest(tmp_path / "one") == path_digest(tmp_path / "two")
    (tmp_path / "two/sub/x.txt").rename(tmp_path / "two/sub/y.txt")
    assert path_digest(tmp_path / "one") != path_digest(tmp_path / "two")


def test_changed_and_missing_files_are_refused(tmp_path: Path):
    file = tmp_path / "a.jsonl"
    file.write_text("{}\n")
    ref = Corpus.of(file)
    assert ref.verified() == file
    assert ref.is_intact()
    file.write_text("{} \n")
    assert not ref.is_intact()
    with pytest.raises(ArtifactChanged, match="was changed"):
        ref.verified()
    file.unlink()
    with pytest.raises(ArtifactChanged, match="is gone"):
        ref.verified()


def test_atomic_path_keeps_the_old_content_when_writing_fails(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(file) as part:
        part.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_files_of_a_folder_get_the_mode_of_new_files(tmp_path: Path):
    mask = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "model") as part:
            part.mkdir()
            closed, script = part / "weights", part / "deep" / "run"
            closed.touch(0o600)
            script.parent.mkdir()
            script.touch(0o700)
    finally:
        os.umask(mask)
    modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / "model").rglob("*") if p.is_file()}
    assert modes == {"weights": 0o640, "run": 0o740}


def test_a_script_that_was_imported_from_a_folder_leaves_its_digest(tmp_path: Path):
    (tmp_path / "run.py").write_text("x = 1")
    before = path_digest(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "run.cpython-311.pyc").write_bytes(b"compiled")
    assert path_digest(tmp_path) == before
    (tmp_path / "other.py").write_text("y = 2")
    assert path_digest(tmp_path) != before


def test_atomic_path_replaces_a_whole_folder(tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "stale.bin").write_text("stale")
    with atomic_path(folder) as part:
        part.mkdir()
        (part / "fresh.bin").write_text("fresh")
    assert [p.name for p in folder.iterdir()] == ["fresh.bin"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_a_killed_writer_leaves_the_old_file_and_sweepable_parts(tmp_path: Path):
    target = tmp_path / "rows.jsonl"
    target.write_text("old\n")
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from core.artifacts import atomic_path
        with atomic_path(Path({str(target)!r})) as part:
            part.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old\n"
    assert len(list(tmp_path.iterdir())) == 2
    sweep_parts(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_json_refuses_numbers_that_are_not_finite(tmp_path: Path):
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json(tmp_path / "x.json", {"value": bad})
    assert not (tmp_path / "x.json").exists()


def test_jsonl_round_trip_keeps_twi_letters(tmp_path: Path):
    rows = [{"text": "Ɛte sɛn?"}, {"text": "line\nbreak"}]
    assert write_jsonl(tmp_path / "r.jsonl", rows) == 2
    assert list(read_jsonl(tmp_path / "r.jsonl")) == rows
    assert "Ɛte sɛn?" in (tmp_path / "r.jsonl").read_text(encoding="utf-8")


class Settings(Frozen):
    rank: int = 8
    workers: int = 2
    not_in_fingerprint = frozenset({"workers"})


def test_fingerprint_ignores_place_and_speed_but_not_settings(tmp_path: Path):
    assert fingerprint(Settings(workers=1)) == fingerprint(Settings(workers=9))
    assert fingerprint(Settings(rank=4)) != fingerprint(Settings(rank=8))
    digest = "sha256:" + "0" * 64
    assert fingerprint(ArtifactRef(path=Path("/a"), digest=digest)) == fingerprint(
        ArtifactRef(path=Path("/b"), digest=digest)
    )


def test_fingerprint_is_equal_in_another_process():
    code = "from core.artifacts import fingerprint; print(fingerprint({'b': 1, 'a': (1.5, None, 'ɛ')}))"
    other = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONHASHSEED": "7"},
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    assert other == fingerprint({"a": (1.5, None, "ɛ"), "b": 1})


def test_fingerprint_refuses_what_it_does_not_know():
    with pytest.raises(TypeError, match="object"):
        fingerprint(object())


def test_source_digest_follows_the_code(tmp_path: Path):
    room = tmp_path / "core/data"
    room.mkdir(parents=True)
    (room / "a.py").write_text("x = 1")
    before = source_digest(["core.data"], tmp_path)
    (room / "notes.txt").write_text("no code")
    assert source_digest(["core.data"], tmp_path) == before
    (room / "a.py").write_text("x = 2")
    assert source_digest(["core.data"], tmp_path) != before


def test_source_digest_follows_the_templates_in_a_folder_named_like_the_module(tmp_path: Path):
    room = tmp_path / "core/data"
    (room / "templates").mkdir(parents=True)
    (room / "templates.py").write_text("x = 1")
    (room / "templates" / "a.jinja").write_text("{{ a }}")
    before = source_digest(["core.data.templates"], tmp_path)
    (room / "templates" / "a.jinja").write_text("{{ b }}")
    assert source_digest(["core.data.templates"], tmp_path) != before
    (room / "templates" / "a.jinja").write_text("{{ a }}")
    (room / "templates.py").write_text("x = 2")
    assert source_digest(["core.data.templates"], tmp_path) != before


def test_phase_result_survives_json(tmp_path: Path):
    (tmp_path / "a").write_text("a")
    kind = PhaseResult[Corpus, Settings]
    result = kind(artifact=Corpus.of(tmp_path / "a"), report=Settings(rank=3))
    assert kind.model_validate_json(result.model_dump_json()) == result


def test_a_writer_killed_between_two_renames_gives_the_old_folder_back(tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/weights").write_text("old")
    script = textwrap.dedent(f"""
        import os, signal
        from pathlib import Path
        from core import artifacts
        with artifacts.atomic_path(Path({str(tmp_path / "model")!r})) as part:
            part.mkdir()
            Path.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
    """)
    subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False)
    assert not (tmp_path / "model").exists()
    sweep_parts(tmp_path)
    assert (tmp_path / "model/weights").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
