"""A grader is known by all the code beside it that it runs."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from core.evaluation.config import GraderConfig
from core.evaluation.grader_files import grader_digest, local_imports
from core.evaluation.own_graders import own_grader

FILES = {
    "my.py": "import json\nimport helper\nfrom words import nouns, DEFAULT\n\ndef f(a, r, m):\n    import late\n    return 1.0\n",
    "helper.py": "import words.verbs as v\nimport helper\n",
    "late.py": "from words.deep.bottom import thing\n",
    "words/__init__.py": "from . import shared\nDEFAULT = 1\n",
    "words/shared.py": "x = 1\n",
    "words/nouns.py": "from .shared import x\nfrom ... import never\nfrom ............................................................ import x\n",
    "words/verbs.py": "y = 1\n",
    "words/deep/__init__.py": "",
    "words/deep/bottom.py": "from ..side import z\nthing = 1\n",
    "words/side.py": "z = 1\n",
    "words/other.py": "not_imported = 1\n",
    "unrelated.py": "x = 1\n",
}
"""One of them starts above the package, which Python refuses and nothing here follows out of the folder."""
NOT_RUN = {"words/other.py", "unrelated.py"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "graders"
    for name, text in FILES.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "never.py").write_text("x = 1")
    return place


def test_exactly_what_is_imported_is_found(folder: Path) -> None:
    found = {file.relative_to(folder).as_posix() for file in local_imports(folder / "my.py")}
    assert found == set(FILES) - NOT_RUN


@pytest.mark.parametrize("name", sorted(FILES))
def test_an_edit_counts_where_the_file_is_run(folder: Path, name: str) -> None:
    before = grader_digest(folder / "my.py")
    (folder / name).write_text(FILES[name] + "# edited\n")
    assert (grader_digest(folder / "my.py") == before) == (name in NOT_RUN)


def test_two_helpers_that_swap_their_contents_count(folder: Path) -> None:
    before = grader_digest(folder / "my.py")
    (folder / "words/shared.py").write_text(FILES["words/side.py"])
    (folder / "words/side.py").write_text(FILES["words/shared.py"])
    assert grader_digest(folder / "my.py") != before


def test_moving_the_folder_or_renaming_the_grader_does_not_count(folder: Path, tmp_path: Path) -> None:
    before = grader_digest(folder / "my.py")
    shutil.move(folder, tmp_path / "elsewhere")
    (tmp_path / "elsewhere/my.py").rename(tmp_path / "elsewhere/mine.py")
    assert grader_digest(tmp_path / "elsewhere/mine.py") == before


def test_the_digest_is_the_same_in_another_process(folder: Path) -> None:
    code = f"from pathlib import Path; from core.evaluation.grader_files import grader_digest as d; print(d(Path({str(folder / 'my.py')!r})))"
    told = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert told.stdout.strip() == grader_digest(folder / "my.py")


def test_the_helpers_are_those_that_are_run(folder: Path) -> None:
    (folder / "words/nouns.py").write_text("from .shared import x\n")
    grade = own_grader("mine", GraderConfig(type="callable", path="my.py:f"), folder)
    assert grade("", "", {}) == 1.0
    files = {
        Path(file) for module in list(sys.modules.values()) if (file := getattr(module, "__file__", None))
    }
    assert {file for file in files if file.is_relative_to(folder)} == local_imports(folder / "my.py")


@pytest.mark.parametrize("text", ["def broken(:", "\0", "import helper, \n"])
def test_a_file_that_is_no_python_is_known_by_its_bytes(folder: Path, text: str) -> None:
    (folder / "my.py").write_text(text)
    assert local_imports(folder / "my.py") == {folder / "my.py"}
    before = grader_digest(folder / "my.py")
    (folder / "my.py").write_text(text + " ")
    assert grader_digest(folder / "my.py") != before
