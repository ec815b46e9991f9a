"""A grader uses the modules beside it, and nobody else sees them."""

import builtins
import importlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import ConfigError, DataError
from core.evaluation.config import EvaluationConfig, GraderConfig
from core.evaluation.metrics import answer_grader, check_metrics
from core.evaluation.own_graders import Grade, own_grader
from core.evaluation.questions import Question

MY = """
import helper
from words import nouns, DEFAULT
import words.verbs as verbs
import words.deep.bottom

def grade(answer, reference, metadata):
    import late
    from late import share
    assert late.share is share and words.deep.bottom.HERE and verbs.HERE and nouns.HERE and DEFAULT
    return share(answer, reference) * helper.FACTOR
"""
FILES = {
    "my.py": MY,
    "helper.py": "FACTOR = 0.5\n",
    "late.py": "def share(answer, reference):\n    import later\n    return later.same(answer, reference)\n",
    "later.py": "import my\ndef same(answer, reference):\n    return float(answer == reference and my.grade is not None)\n",
    "words/__init__.py": "from . import nouns\nDEFAULT = 1\n",
    "words/nouns.py": "import helper\nHERE = helper.FACTOR\n",
    "words/verbs.py": "from .deep.bottom import HERE\n",
    "words/deep/bottom.py": "from ..nouns import HERE\n",
}


def folder_of(place: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = place / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return place


def grader(folder: Path, path: str = "my.py:grade") -> Grade:
    return own_grader("mine", GraderConfig(type="callable", path=path), folder)


def one_line(text: str) -> dict[str, str]:
    return {"my.py": f"{text}\ndef grade(answer, reference, metadata):\n    return value\n"}


@pytest.fixture(autouse=True)
def process_is_left_alone() -> Iterator[None]:
    before, path, importing = set(sys.modules), list(sys.path), builtins.__import__
    yield
    assert (sys.path, builtins.__import__) == (path, importing)
    fresh = {name.partition(".")[0] for name in set(sys.modules) - before}
    assert {name for name in fresh if not name.startswith("grader_")} <= sys.stdlib_module_names


def test_helpers_packages_and_late_imports_are_found(tmp_path: Path):
    grade = grader(folder_of(tmp_path, FILES))
    assert (grade("a", "a", {}), grade("a", "b", {})) == (0.5, 0.0)


def test_a_relative_folder_and_a_change_of_folder_do_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    graders = []
    for name, factor in (("one", 1.0), ("two", 0.5)):
        folder_of(
            tmp_path / name / "graders", {**FILES, "late.py": f"def share(*given):\n    return {factor}\n"}
        )
        monkeypatch.chdir(tmp_path / name)
        graders.append(grader(Path(), "graders/my.py:grade"))
    monkeypatch.chdir("/")
    assert [grade("a", "a", {}) for grade in graders] == [0.5, 0.25]


def test_helpers_of_one_name_in_two_folders_stay_apart(tmp_path: Path):
    first = grader(folder_of(tmp_path / "a", FILES))
    second = grader(folder_of(tmp_path / "b", {**FILES, "helper.py": "FACTOR = 0.25\n",
                                               "late.py": "def share(*given):\n    return 1.0\n"}))  # fmt: skip
    assert [first("x", "x", {}), second("x", "y", {}), first("x", "y", {})] == [0.5, 0.25, 0.0]
    assert "helper" not in sys.modules and "words" not in sys.modules


def test_every_load_starts_anew(tmp_path: Path):
    text = "import helper\ndef grade(answer, reference, metadata):\n    helper.seen.append(1)\n    return 1 / len(helper.seen)\n"
    folder_of(tmp_path, {"my.py": text, "helper.py": "seen = []\n"})
    first, second = grader(tmp_path), grader(tmp_path)
    assert [first("", "", {}), first("", "", {}), second("", "", {})] == [1.0, 0.5, 1.0]


def test_a_helper_called_like_a_library_hides_it_from_its_grader_alone(tmp_path: Path):
    files = one_line("from numpy import value\nimport json\nimport math") | {
        "numpy.py": "value = 0.125\n", "json.py": "import decimal\n", "scope.py": "", "name.py": "value = 1\n",
    }  # fmt: skip
    files["my.py"] = "import scope, name\n" + files["my.py"] + "\nimport decimal, scope\n"
    assert grader(folder_of(tmp_path, files))("", "", {}) == 0.125
    import json

    import numpy

    assert numpy.zeros(1).size == 1 and json.loads("1") == 1


def test_a_folder_that_is_no_package_hides_no_library(tmp_path: Path):
    files = one_line("import numpy\nvalue = float(numpy.ones(1)[0])") | {
        "numpy/notes.txt": "",
        "lists/x.py": "v = 1\n",
    }
    assert grader(folder_of(tmp_path, files))("", "", {}) == 1.0
    (tmp_path / "my.py").write_text(one_line("from lists.x import v as value")["my.py"])
    assert grader(tmp_path)("", "", {}) == 1.0


def test_what_the_program_runs_from_the_same_file_is_the_same_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    text = "import late_library\ndef grade(answer, reference, metadata):\n    raise late_library.Mine\n"
    folder_of(tmp_path, {"my.py": text, "late_library.py": "class Mine(Exception): pass\n"})
    with monkeypatch.context() as patched:
        patched.syspath_prepend(str(tmp_path))
        library = importlib.import_module("late_library")
    with pytest.raises(library.Mine):
        grader(tmp_path)("", "", {})
    del sys.modules["late_library"]


def test_a_late_import_works_in_a_thread_of_the_graders_own(tmp_path: Path):
    grade, found = grader(folder_of(tmp_path, FILES)), []
    threads = [threading.Thread(target=lambda: found.append(grade("a", "a", {}))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [0.5] * 8


def test_classes_of_a_helper_know_their_module(tmp_path: Path):
    text = "from __future__ import annotations\nimport dataclasses, pickle, typing\n@dataclasses.dataclass\nclass Kept:\n    value: int = 1\n"
    files = {"my.py": "import helper, pickle, typing\ndef grade(answer, reference, metadata):\n"
                      "    assert typing.get_type_hints(helper.Kept) == {'value': int}\n"
                      "    return float(pickle.loads(pickle.dumps(helper.Kept(1))).value)\n", "helper.py": text}  # fmt: skip
    assert grader(folder_of(tmp_path, files))("", "", {}) == 1.0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (one_line("import nowhere"), "ModuleNotFoundError: No module named 'nowhere'"),
        (one_line("import helper") | {"helper.py": "1 / 0"}, "ZeroDivisionError"),
        (one_line("from helper import value") | {"helper.py": ""}, "cannot import name 'value'"),
    ],
)
def test_a_helper_that_cannot_be_had_is_an_error_of_the_config_and_leaves_nothing(
    tmp_path: Path, files: dict[str, str], message: str
):
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=message):
        grader(folder_of(tmp_path, files))
    assert set(sys.modules) == before


def config(**settings: Any) -> EvaluationConfig:
    graders = {"mine": GraderConfig(type="callable", path="my.py:grade")}
    return EvaluationConfig(graders=graders, metrics=("mine",), primary_metric="mine", **settings)


def test_a_config_with_such_a_grader_is_accepted_and_grades_samples(tmp_path: Path):
    folder_of(tmp_path, FILES)
    check_metrics(config(), tmp_path)
    question = Question("q", [{"role": "user", "content": "?"}], "yes", {})
    assert answer_grader(config(), tmp_path)(question, "yes") == 0.5


def test_a_late_helper_that_is_missing_names_the_example(tmp_path: Path):
    folder_of(tmp_path, FILES)
    grade = answer_grader(config(), tmp_path)
    (tmp_path / "late.py").unlink()
    with pytest.raises(DataError, match="No module named 'late'"):
        grade(Question("q7", [{"role": "user", "content": "?"}], "yes", {}), "yes")


def test_a_library_that_imports_what_it_is_asked_for_can_still_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    grader(folder_of(tmp_path / "mine", one_line("value = 1.0")))
    # As Prefect does.
    lazy = "import importlib\ndef __getattr__(name): return importlib.import_module(f'.{name}', __name__)\n"
    folder_of(
        tmp_path / "libraries", {"lazy_library/__init__.py": lazy, "lazy_library/part.py": "HERE = 1\n"}
    )
    monkeypatch.syspath_prepend(str(tmp_path / "libraries"))
    try:
        assert importlib.import_module("lazy_library").part.HERE == 1
    finally:
        for name in [name for name in sys.modules if name.startswith("lazy_library")]:
            del sys.modules[name]
