import pytest

from core.data.benchmarks import read_texts
from core.errors import DataError


def test_every_text_of_every_item_counts(tmp_path, jsonl):
    jsonl(
        tmp_path / "b.jsonl", [{"question": "how many are there", "choices": ["one of them", "two"], "n": 3}]
    )
    assert read_texts(("b.jsonl",), tmp_path, tmp_path) == ("how many are there", "one of them", "two")
    assert read_texts((), tmp_path, tmp_path) == ()


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b'{"q": "a b c d"}\n{"q"', "b.jsonl:2"),
        (b'{"q": "too short"}', "b.jsonl"),
        (b'{"q": "caf\xe9 a b"}', "b.jsonl:1"),
    ],
)
def test_a_benchmark_that_would_clear_everything_is_refused(tmp_path, content, where):
    (tmp_path / "b.jsonl").write_bytes(content)
    with pytest.raises(DataError) as error:
        read_texts(("b.jsonl",), tmp_path, tmp_path)
    assert error.value.where == where
