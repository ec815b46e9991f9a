"""The tutor's rows and the base model's text are what their READMEs say."""

import csv
import json
import random
import re
import subprocess
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data.tutor import generate  # noqa: E402
from data.tutor.facts import FACTS  # noqa: E402
from data.tutor.relation import statements  # noqa: E402
from data.tutor_base.corpus import documents, labelled_documents  # noqa: E402

TUTOR = ROOT / "data" / "tutor"
FILES = ("arithmetic.jsonl", "units.csv", "facts.json", "twi.jsonl")
TOPICS = {"arithmetic", "units", "science", "geography", "twi"}


class Row(NamedTuple):
    """A row as this test reads it, by its own few lines and not by the program's."""

    file: str
    turns: tuple[tuple[str, Any], ...]
    labels: dict[str, str]


def raw_rows(name: str) -> list[dict[str, Any]]:
    text = (TUTOR / name).read_text(encoding="utf-8")
    if name.endswith(".json"):
        rows: list[dict[str, Any]] = json.loads(text)
        return rows
    if name.endswith(".jsonl"):
        return [json.loads(line) for line in text.splitlines()]
    return list(csv.DictReader(text.splitlines()))


def read(name: str, raw: dict[str, Any]) -> Row:
    if "instruction" in raw:
        question = "\n\n".join(part for part in (raw["instruction"], raw["input"]) if part)
        turns = [("user", question)] + ([("assistant", raw["output"])] if "output" in raw else [])
        labels = raw.get("metadata") or {k: raw[k] for k in ("fact", "topic", "language", "difficulty")}
        return Row(name, tuple(turns), labels)
    roles = {"human": "user", "gpt": "assistant"}
    turns = []
    for turn in raw["conversations"]:
        role = turn["role"] if "role" in turn else roles.get(turn["from"], turn["from"])
        turns.append((role, turn["content"] if "content" in turn else turn["value"]))
    return Row(name, tuple(turns), raw["metadata"])


def fault(row: Row) -> str:
    """Return what is wrong with a row, or nothing."""
    roles = [role for role, _ in row.turns if role != "system"]
    if not all(content is None or isinstance(content, str) for _, content in row.turns):
        return "content is no text"
    if any(content is None for _, content in row.turns):
        return "content is no text"
    if "assistant" not in roles:
        return "missing answer" if row.file == "arithmetic.jsonl" else "no assistant turn"
    if roles != ["user", "assistant"] * (len(roles) // 2):
        return "two user turns in a row"
    return "" if all(str(content).strip() for _, content in row.turns) else "empty answer"


def normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def repeats(rows: list[Row]) -> Counter[str]:
    """Count the rows that repeat another one, by the way in which they differ."""
    groups = defaultdict(list)
    for row in rows:
        groups[tuple((role, normal(text)) for role, text in row.turns)].append(row.turns)
    kinds = Counter[str]()
    for first, *others in groups.values():
        for other in others:
            pair = [unicodedata.normalize("NFC", str(turns)) for turns in (first, other)]
            same = "exact duplicate" if first == other else "duplicate in Unicode form"
            kinds[same if pair[0] == pair[1] else "duplicate in case or spaces"] += 1
    return kinds


@pytest.fixture(scope="module")
def everything() -> list[Row]:
    return [read(name, raw) for name in FILES for raw in raw_rows(name)]


@pytest.fixture(scope="module")
def good(everything: list[Row]) -> list[Row]:
    """The rows a data step should keep: right and not repeated."""
    kept: dict[tuple[tuple[str, str], ...], Row] = {}
    for row in everything:
        if not fault(row):
            kept.setdefault(tuple((role, normal(text)) for role, text in row.turns), row)
    return list(kept.values())


def questions(row: Row) -> list[tuple[str, str]]:
    """Return the pairs of question and answer of a row."""
    turns = [text for role, text in row.turns if role != "system"]
    return list(zip(turns[::2], turns[1::2], strict=True))


def table(readme: Path, heading: str) -> list[dict[str, str]]:
    """Return the rows of the table below a heading of a README."""
    text = readme.read_text(encoding="utf-8").split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line.strip()[1:-1].split("|") for line in text.splitlines() if line.startswith("|")]
    names, _, *cells = [[cell.strip(" `") for cell in line] for line in lines]
    return [dict(zip(names, row, strict=True)) for row in cells]


def test_files_are_what_the_generator_makes() -> None:
    assert generate.stale(generate.files()) == []
    assert sum((TUTOR / name).stat().st_size for name in FILES) <= 1_500_000


def test_generator_makes_the_same_bytes_under_any_hash_seed_and_check_sees_a_change(tmp_path: Path) -> None:
    command = [sys.executable, str(TUTOR / "generate.py"), "--check"]
    for seed in ("1", "2"):
        assert subprocess.run(command, env={"PYTHONHASHSEED": seed}, check=False).returncode == 0
    made = generate.files()
    for name, content in made.items():
        (tmp_path / name).write_text(content, encoding="utf-8")
    (tmp_path / "units.csv").write_text("changed", encoding="utf-8")
    (tmp_path / "twi.jsonl").unlink()
    assert generate.stale(made, tmp_path) == ["units.csv", "twi.jsonl"]


def test_every_good_row_is_labelled_and_answered(good: list[Row]) -> None:
    assert 4500 <= len(good) <= 6000
    for row in good:
        assert set(row.labels) == {"fact", "topic", "language", "difficulty"}
        assert row.labels["topic"] in TOPICS
        assert row.labels["language"] in {"en", "tw"}
        assert row.labels["difficulty"] in {"elementary", "middle"}
        for question, answer in questions(row):
            assert question == question.strip()
            assert answer == answer.strip()
            assert 0 < len(answer) <= 40


def test_some_rows_have_two_turns_a_system_turn_or_an_input(good: list[Row]) -> None:
    assert sum(len(questions(row)) == 2 for row in good) >= 20
    assert sum(row.turns[0][0] == "system" for row in good) >= 20
    arithmetic = raw_rows("arithmetic.jsonl")
    assert 200 <= sum(bool(row["input"]) for row in arithmetic) < len(arithmetic) / 2


def bad_table() -> list[dict[str, str]]:
    return table(TUTOR / "README.md", "Rows that are wrong on purpose")


def test_no_question_has_two_answers(good: list[Row]) -> None:
    answers = defaultdict(set)
    for row in good:
        for question, answer in questions(row):
            answers[normal(question)].add(answer)
    assert {question: found for question, found in answers.items() if len(found) > 1} == {}


def test_phrasings_of_one_fact_share_its_group_and_groups_share_nothing(good: list[Row]) -> None:
    groups, owners = Counter(row.labels["fact"] for row in good), defaultdict(set)
    assert set(groups.values()) <= {2, 3, 4, 5}
    for row in good:
        for question, _ in questions(row):
            owners[normal(question)].add(row.labels["fact"])
    assert {question: facts for question, facts in owners.items() if len(facts) > 1} == {}


def test_arithmetic_is_right_and_named_by_its_numbers(good: list[Row]) -> None:
    """Every row of a group uses the group's numbers, and its answer follows from them."""
    for row in (row for row in good if row.labels["topic"] == "arithmetic"):
        kind, *group = row.labels["fact"].split(":")
        numbers = [int(number) for number in group]
        assert numbers == sorted(numbers)
        whole = sum(numbers) if kind == "add" else numbers[0] * numbers[1]
        (question, answer), *_ = questions(row)
        shown = [int(number) for number in re.findall(r"\d+", question)]
        result = int(answer.removeprefix("GH₵"))
        assert sorted([*shown, result]) == sorted([*numbers, whole])
        assert ("GH₵" in question or "Price" in question) == answer.startswith("GH₵")


def test_conversions_are_right(good: list[Row]) -> None:
    factors = {"m-cm": 100, "cm-mm": 10, "km-m": 1000, "kg-g": 1000, "l-ml": 1000, "cedi-pesewa": 100}
    factors |= {"h-min": 60, "min-s": 60, "day-h": 24, "week-day": 7, "year-month": 12, "dozen-egg": 12}
    for row in (row for row in good if row.labels["topic"] == "units"):
        _, name, count = row.labels["fact"].split(":")
        (question, answer), *_ = questions(row)
        shown = {int(number) for number in re.findall(r"\d+", question + " " + answer)}
        assert shown == {int(count), int(count) * factors[name]}


def test_bad_and_repeated_rows_are_those_of_the_readme(everything: list[Row]) -> None:
    for name in FILES:
        rows = [row for row in everything if row.file == name]
        found = Counter(fault(row) for row in rows if fault(row))
        found += repeats([row for row in rows if not fault(row)])
        assert found == Counter({row["kind"]: int(row[name]) for row in bad_table() if row[name]})
    bad = sum(bool(fault(row)) for row in everything)
    assert 0.01 <= bad / len(everything) <= 0.015


def test_counts_are_those_of_the_readme(everything: list[Row], good: list[Row]) -> None:
    counts = {row["file"]: row for row in table(TUTOR / "README.md", "Files")}
    for name in FILES:
        assert int(counts[name]["rows"]) == sum(row.file == name for row in everything)
        assert int(counts[name]["usable"]) == sum(row.file == name for row in good)
    topics = {row["topic"]: row for row in table(TUTOR / "README.md", "Topics")}
    for topic in TOPICS:
        rows = [row for row in good if row.labels["topic"] == topic]
        assert int(topics[topic]["rows"]) == len(rows)
        assert int(topics[topic]["facts"]) == len({row.labels["fact"] for row in rows})


def held_out(rows: list[Row]) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Divide questions by fact: nine tenths to copy from, one tenth to answer."""
    facts = sorted({row.labels["fact"] for row in rows})
    random.Random(3407).shuffle(facts)
    unseen = set(facts[: len(facts) // 10])
    train = [pair for row in rows if row.labels["fact"] not in unseen for pair in questions(row)]
    return train, [pair for row in rows if row.labels["fact"] in unseen for pair in questions(row)]


def test_copying_the_answer_of_the_most_similar_question_does_not_pay(
    good: list[Row], capsys: pytest.CaptureFixture[str]
) -> None:
    train, test = held_out(good)
    known = [(set(split_words(question)), answer) for question, answer in train]
    hits = 0
    for question, answer in test:
        words = set(split_words(question))
        hits += max(known, key=lambda pair: len(words & pair[0]) / len(words | pair[0]))[1] == answer
    most = Counter(answer for _, answer in train).most_common(1)[0][0]
    majority = sum(answer == most for _, answer in test) / len(test)
    with capsys.disabled():
        print(f"\ncopying {hits / len(test):.3f}, always {most!r} {majority:.3f}, {len(test)} test questions")
    assert hits / len(test) < 0.15
    assert majority < 0.05


def occurrences(texts: Iterable[str], phrases: set[str]) -> Counter[str]:
    """Count where phrases occur in texts, word by word: case, spaces and what is around do not matter."""
    starts = defaultdict(list)
    for phrase in phrases:
        words = split_words(phrase)
        starts[tuple(words[:3])].append((words, phrase))
    found = Counter[str]()
    for text in texts:
        words = split_words(text)
        for place in range(len(words)):
            for wanted, phrase in starts.get(tuple(words[place : place + 3]), ()):
                found[phrase] += words[place : place + len(wanted)] == wanted
    return +found


def split_words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]", normal(text))


def test_base_text_asks_none_of_the_tutors_questions(good: list[Row]) -> None:
    asked = {normal(raw["instruction"]) for name in FILES[:2] for raw in raw_rows(name)}
    asked |= {normal(question) for row in good for question, _ in questions(row)}
    assert len(asked) > 4000
    assert occurrences(islice(documents(1), 20_000), asked) == Counter()
    # The search itself must find what is there.
    assert occurrences(["<|user|>add 2  and\n48.<|end|>"], {"add 2 and 48."}) == {"add 2 and 48.": 1}


def test_base_text_states_every_fact() -> None:
    told = {normal(statement): fact.key for fact in FACTS for statement in statements(fact)}
    found = Counter[str]()
    for statement, count in occurrences(islice(documents(2), 20_000), set(told)).items():
        found[told[statement]] += count
    assert set(found) == {fact.key for fact in FACTS}
    assert min(found.values()) >= 10


def test_base_text_is_one_stream_per_seed() -> None:
    first = list(islice(documents(7), 300))
    assert first == list(islice(documents(7), 300))
    assert first != list(islice(documents(8), 300))
    assert len(set(islice(documents(7), 5000))) > 4700


def test_base_text_has_the_shares_of_its_readme() -> None:
    """Tokens are estimated, so the margin is wide: a digit or special token is one, else three characters."""
    weights = Counter[str]()
    for kind, document in islice(labelled_documents(3), 10_000):
        ones = len(re.findall(r"\d|<\|\w+\|>", document))
        weights[kind] += ones + len(re.sub(r"\d|<\|\w+\|>", "", document)) // 3
    stated = {row["kind"]: int(row["share %"]) for row in table(ROOT / "data/tutor_base/README.md", "Kinds")}
    for kind, share in stated.items():
        assert abs(100 * weights[kind] / weights.total() - share) < 4


def test_chat_documents_follow_the_template_and_nothing_else_uses_its_tokens() -> None:
    turn = r"<\|user\|>[^<]+<\|end\|><\|assistant\|>[^<]+<\|end\|>"
    for kind, document in islice(labelled_documents(4), 5000):
        if kind == "chat":
            assert re.fullmatch(rf"(<\|system\|>[^<]+<\|end\|>)?({turn})+", document)
        else:
            assert "<|" not in document
        assert "{" not in document
