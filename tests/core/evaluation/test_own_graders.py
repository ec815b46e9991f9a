"""Graders that a config describes, and every way to describe them wrongly."""

from pathlib import Path

import pytest

from core.errors import ConfigError, DataError
from core.evaluation.config import GraderConfig
from core.evaluation.own_graders import own_grader


def grade(answer: str, reference: str = "", metadata=None, base: Path = Path(), **settings) -> float:
    return own_grader("mine", GraderConfig(**settings), base)(answer, reference, metadata or {})


@pytest.mark.parametrize(
    ("pattern", "answer", "reference", "score"),
    [
        (r"\d+ cedis", "That is 12 cedis.", "", 1.0),
        (r"^\d+$", "That is 12", "", 0.0),
        (r"^{reference}\b", "a+b is it", "a+b", 1.0),
        (r"^{reference}\b", "aab is it", "a+b", 0.0),
        (r"^\d{2}$", "12", "", 1.0),
        (r"(?i)accra", "ACCRA", "", 1.0),
    ],
)
def test_a_pattern_is_searched_in_the_answer(pattern, answer, reference, score):
    assert grade(answer, reference, type="regex", pattern=pattern) == score


@pytest.mark.parametrize(
    ("answer", "match", "score"),
    [
        ("Accra and Kumasi", "all", 1.0),
        ("accra only", "all", 0.5),
        ("accra only", "any", 1.0),
        ("Accrapolis", "any", 0.0),
        ("Megaaccra", "any", 0.0),
        ("", "all", 0.0),
    ],
)
def test_keywords_are_whole_words_of_any_case(answer, match, score):
    assert grade(answer, type="keywords", keywords=("Accra", "Kumasi"), match=match) == score


def test_keywords_of_the_row_count_where_the_grader_names_none():
    assert grade("red and blue", metadata={"keywords": ["red", "green"]}, type="keywords") == 0.5
    assert grade("red and blue", metadata={"keywords": "red, green ,blue"}, type="keywords") == pytest.approx(
        2 / 3
    )
    with pytest.raises(DataError, match="no keywords"):
        grade("red", type="keywords")


def test_a_function_of_the_users_own_grades(tmp_path: Path):
    (tmp_path / "my.py").write_text("def half(answer, reference, metadata):\n    return metadata['share']\n")
    assert grade("x", metadata={"share": 0.25}, base=tmp_path, type="callable", path="my.py:half") == 0.25


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": "regex"}, "needs a pattern"),
        ({"type": "regex", "pattern": "(["}, "no regular expression"),
        ({"type": "callable"}, "names no function"),
        ({"type": "callable", "path": "my.py"}, "names no function"),
        ({"type": "callable", "path": "my.py:a b"}, "names no function"),
        ({"type": "callable", "path": "none.py:half"}, "no file"),
        ({"type": "callable", "path": "my.py:nothing"}, "no function nothing"),
        ({"type": "callable", "path": "my.py:NUMBER"}, "no function NUMBER"),
        ({"type": "callable", "path": "broken.py:half"}, "fails when loaded: ZeroDivisionError"),
        ({"type": "callable", "path": "wrong.py:half"}, "fails when loaded: SyntaxError"),
        ({"type": "callable", "path": "quits.py:half"}, "fails when loaded: SystemExit: 3"),
        ({"type": "callable", "path": "data.txt:half"}, "no Python file"),
    ],
)
def test_a_grader_that_cannot_be_had_is_an_error_of_the_config(tmp_path: Path, settings, message):
    (tmp_path / "my.py").write_text("NUMBER = 3\ndef half(answer, reference, metadata):\n    return 0.5\n")
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "quits.py").write_text("import sys\nsys.exit(3)")
    (tmp_path / "wrong.py").write_text("def half(:")
    (tmp_path / "data.txt").write_text("half")
    with pytest.raises(ConfigError, match=message) as caught:
        own_grader("mine", GraderConfig(**settings), tmp_path)
    assert "evaluation.graders.mine" in str(caught.value)
