"""Evaluation: questions from a split, scores into a report."""

from pathlib import Path

import pytest

from core.artifacts import file_digest, write_jsonl
from core.errors import DataError
from core.evaluation.config import EvaluationConfig
from core.evaluation.evaluate import Answer, evaluate, read_questions

ROWS = [
    {"id": f"r{i}", "conversations": [{"role": "user", "content": f"What is {i} + 1?"},
     {"role": "assistant", "content": str(i + 1)}], "metadata": {"topic": "sums"}}
    for i in range(10)
]  # fmt: skip


class Adds:
    """Answers correctly for even numbers."""

    def answer(self, prompts, max_new_tokens, tick):
        tick(len(prompts), len(prompts))
        numbers = [int(p[-1]["content"].split()[2]) for p in prompts]
        return [Answer(str(n + 1) if n % 2 == 0 else "no", [1, n], 2) for n in numbers]


@pytest.fixture
def test_file(tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "test.jsonl", ROWS)
    return tmp_path / "test.jsonl"


def run(test_file: Path, **settings):
    clock = iter([0.0, 4.0])
    return evaluate(
        Adds(), test_file, EvaluationConfig(resamples=1000, **settings), arm="tuned", model_digest="sha256:m",
        clock=lambda: next(clock), tick=lambda done, total: None,
    )  # fmt: skip


def test_the_report_follows_from_the_answers(test_file: Path):
    result = run(test_file)
    report = result.report
    assert (report.value, report.n) == (0.5, 10)
    assert report.scores["exact_match"] == (1, 0, 1, 0, 1, 0, 1, 0, 1, 0)
    assert report.metrics["exact_match"].low < 0.5 < report.metrics["exact_match"].high
    assert report.ids == tuple(f"r{i}" for i in range(10))
    assert report.split_digest == file_digest(test_file)
    assert report.tokens_per_second == 5.0
    assert result.rows[1]["answer"] == "no"
    assert result.rows[1]["reference"] == "2"


def test_prompt_digest_tells_prompts_apart(test_file: Path):
    whole = run(test_file).report.decoding.prompt_digest
    assert run(test_file).report.decoding.prompt_digest == whole
    assert run(test_file, max_examples=9).report.decoding.prompt_digest != whole


def test_the_last_answer_is_the_reference_and_never_shown(tmp_path: Path):
    turns = [("system", "Be short."), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]
    row = {"id": "x", "conversations": [{"role": r, "content": c} for r, c in turns]}
    write_jsonl(tmp_path / "t.jsonl", [row])
    question = read_questions(tmp_path / "t.jsonl")[0]
    assert question.reference == "d"
    assert [m["content"] for m in question.messages] == ["Be short.", "a", "b", "c"]


def test_an_empty_test_split_is_an_error(tmp_path: Path):
    (tmp_path / "t.jsonl").write_text("")
    with pytest.raises(DataError, match="empty"):
        read_questions(tmp_path / "t.jsonl")
