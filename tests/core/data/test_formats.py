import pytest

from core.data.config import FieldsConfig
from core.data.formats import Rejected, convert, describe, detect


def said(row, declared="auto", fields=None):
    return [(turn.role, turn.content) for turn in convert(row, declared, fields).messages]


QA = [("user", "Q"), ("assistant", "A")]
SQA = [("system", "S"), *QA]
TALK = [("user", "Q1"), ("assistant", "A1"), ("user", "Q"), ("assistant", "A")]


def openai(pairs):
    return [{"role": role, "content": content} for role, content in pairs]


def messages(*pairs):
    return {"messages": openai(pairs)}


def sharegpt(*pairs):
    return {"conversations": [{"from": who, "value": text} for who, text in pairs]}


SHAPES = [
    ({"instruction": "Q", "input": "", "output": "A"}, "alpaca", QA),
    ({"instruction": "Q", "input": None, "output": "A"}, "alpaca", QA),
    ({"instruction": " Q\n", "output": "A "}, "alpaca", QA),
    ({"instruction": "S", "input": "Q", "output": "A"}, "alpaca", SQA),
    ({"input": "Q", "output": "A"}, "alpaca", QA),
    ({"instruction": "Q", "output": "A", "text": "### Instruction: Q"}, "alpaca", QA),
    ({"instruction": "S", "context": "Q", "response": "A"}, "alpaca", SQA),
    ({"instruction": "Q", "output": "A", "system": "S"}, "alpaca", SQA),
    ({"instruction": "Q", "output": "A", "history": [["Q1", "A1"]]}, "alpaca", TALK),
    (messages(*SQA), "messages", SQA),
    (messages(*TALK), "messages", TALK),
    (messages(("developer", "S"), *QA), "messages", SQA),
    (messages(("system", " "), *QA), "messages", QA),
    (messages(("User", "Q"), ("ASSISTANT", "A")), "messages", QA),
    (messages(("user", [{"type": "text", "text": "Q"}]), ("assistant", "A")), "messages", QA),
    (messages(("user", [{"type": "input_text", "text": "Q"}, {"text": "!"}]), ("assistant", "A")), "messages",
     [("user", "Q!"), ("assistant", "A")]),
    ({"messages": '[{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]'}, "messages", QA),
    ({**messages(*QA), "system": "S"}, "messages", SQA),
    ({**messages(*SQA), "system": "other"}, "messages", SQA),
    ({**messages(*QA), "prompt": "Q"}, "messages", QA),
    (sharegpt(("human", "Q"), ("gpt", "A")), "sharegpt", QA),
    (sharegpt(*SQA), "sharegpt", SQA),
    ({"messages": sharegpt(*TALK)["conversations"]}, "sharegpt", TALK),
    ({"conversation": openai(SQA)}, "sharegpt", SQA),
    ({"conversations": openai(QA * 2)}, "sharegpt", QA * 2),
    ({"dialog": openai(QA)}, "sharegpt", QA),
    ({"conversations": [{"from": None, "value": None, "role": r, "content": c} for r, c in QA]}, "sharegpt", QA),
    ({**sharegpt(*QA), "system": "S"}, "sharegpt", SQA),
    ({"prompt": "Q", "completion": "A"}, "prompt_completion", QA),
    ({"prompt": "Q", "response": "A"}, "prompt_completion", QA),
    ({"prompt": openai(SQA[:2]), "completion": openai(QA[1:])}, "prompt_completion", SQA),
    ({"prompt": openai(TALK[:3]), "completion": "A"}, "prompt_completion", TALK),
    ({"question": "Q", "answer": "A"}, "question_answer", QA),
    ({"query": "Q", "response": "A"}, "question_answer", QA),
    ({"system_prompt": "S", "question": "Q", "response": "A"}, "question_answer", SQA),
    ({"prompt": "ignored", "question": "Q", "answer": "A"}, "question_answer", QA),
    ({"instruction": None, "output": None, "question": "Q", "answer": "A"}, "question_answer", QA),
]  # fmt: skip


@pytest.mark.parametrize(("row", "shape", "expected"), SHAPES)
def test_every_shape_becomes_the_same_turns_found_or_declared(row, shape, expected):
    assert detect(row) == shape
    assert said(row) == expected
    assert said(row, shape) == expected
    assert convert(row).text is None


@pytest.mark.parametrize(
    ("row", "field"),
    [
        ({"text": " A long\ntext. \n"}, "text"),
        ({"title": "T", "content": "words"}, "content"),
        ({"body": "words"}, "body"),
        ({"article": "words"}, "article"),
        ({"document": "words", "text": ""}, "document"),
        ({"text": "words", "article": "more"}, "text"),
        ({"text": "words", "instruction": None, "output": None}, "text"),
        ({"text": "He said: User: a\nAssistant: b"}, "text"),
        ({"text": "# Heading\n\n### Instruction: none"}, "text"),
        ({"text": "<|im_start|> is how a turn opens."}, "text"),
    ],
)
def test_a_plain_text_is_kept_as_it_stands(row, field):
    converted = convert(row)
    assert (converted.format, converted.messages, converted.used) == ("text", (), (field,))
    assert converted.text == row[field]
    assert convert(row, "text").text == row[field]


def test_an_annotated_passage_is_a_text_with_what_was_noted():
    row = {
        "id": "p-1",
        "source": {"id": "s-1", "type": "textbook", "consent_status": "obtained", "name": "Book"},
        "raw_text": "Ɛyɛ  ade",
        "annotations": {"topic": "maths", "language": "tw", "dialect_markers": ["ɛ"], "notes": "n"},
        "created_at": "2026-01-01",
    }
    converted = convert(row)
    assert (converted.format, converted.text, converted.used) == ("text", "Ɛyɛ  ade", ("raw_text",))
    assert converted.metadata == {
        "topic": "maths", "language": "tw", "dialect_markers": ["ɛ"], "notes": "n", "source": "s-1",
        "source_type": "textbook", "consent_status": "obtained", "created_at": "2026-01-01",
    }  # fmt: skip
    assert convert({**row, "cleaned_text": "Ɛyɛ ade"}).text == "Ɛyɛ ade"
    assert said({**row, "instruction": "Q", "output": "A"}) == QA


@pytest.mark.parametrize(
    ("fields", "row", "expected", "used"),
    [
        ({"user": "frage", "assistant": "antwort"}, {"frage": "Q", "antwort": "A"}, QA, ("frage", "antwort")),
        (
            {"user": "f", "assistant": "a", "system": "s"},
            {"f": "Q", "a": "A", "s": "S"},
            SQA,
            ("s", "f", "a"),
        ),
        ({"user": "f", "assistant": "a", "system": "s"}, {"f": "Q", "a": "A"}, QA, ("f", "a")),
        (
            {
                "messages": "talk",
                "role": "who",
                "content": "what",
                "roles": {"pupil": "user", "t": "assistant"},
            },
            {"talk": [{"who": "pupil", "what": "Q"}, {"who": "t", "what": "A"}]},
            QA,
            ("talk",),
        ),
        (
            {"messages": "talk", "system": "s"},
            {"talk": openai(QA), "s": "S", "messages": "other"},
            SQA,
            ("s", "talk"),
        ),
    ],
)
def test_fields_that_the_config_names(fields, row, expected, used):
    config = FieldsConfig(**fields)
    converted = convert(row, fields=config)
    assert (said(row, "auto", config), converted.format, converted.used) == (expected, "mapped", used)
    assert said(row, "mapped", config) == expected


def test_a_named_text_field_is_a_plain_text():
    assert convert({"saetze": " a ", "text": "b"}, fields=FieldsConfig(text="saetze")).text == " a "


@pytest.mark.parametrize(
    ("fields", "row", "reason"),
    [
        ({"user": "f", "assistant": "a"}, {"a": "A"}, "no field 'f'"),
        ({"user": "f", "assistant": "a"}, {"f": "Q"}, "no field 'a'"),
        ({"user": "f", "assistant": "a"}, {"f": "Q", "a": None}, "no answer"),
        ({"user": "f", "assistant": "a"}, {"f": " ", "a": "A"}, "no user turn"),
        ({"user": "f", "assistant": "a"}, {"f": 7, "a": "A"}, "content is not text"),
        ({"messages": "m"}, {"m": "text"}, "content is not text"),
        ({"messages": "m"}, {}, "no field 'm'"),
        ({"messages": "m"}, {"m": [{"who": "user"}]}, "unknown shape"),
        ({"text": "t"}, {"text": "x"}, "no field 't'"),
        ({"text": "t"}, {"t": " "}, "empty text"),
    ],
)
def test_a_row_that_does_not_fit_the_map_says_which_field(fields, row, reason):
    with pytest.raises(Rejected) as refusal:
        convert(row, fields=FieldsConfig(**fields))
    assert str(refusal.value) == reason


IMAGE = [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text", "text": "Q"}]
UNUSABLE = [
    ({}, "unknown shape"),
    (None, "unknown shape"),
    (["x"], "unknown shape"),
    ({"messages": "x"}, "unknown shape"),
    ({"messages": ["x"]}, "unknown shape"),
    ({"messages": [{"role": "user"}]}, "unknown shape"),
    ({"role": "user", "content": "one turn a row"}, "unknown shape"),
    ({"instruction": "Q"}, "no answer"),
    ({"instruction": "Q", "output": None}, "no answer"),
    ({"instruction": "Q", "text": "T"}, "no answer"),
    ({"instruction": "Q", "output": " \n"}, "empty answer"),
    ({"instruction": "", "input": "", "output": "A"}, "no user turn"),
    ({"instruction": "Q", "output": "A", "history": ["Q1"]}, "content is not text"),
    ({"output": "A"}, "no user turn"),
    ({"question": None, "answer": None}, "no answer"),
    ({"instruction": "Q", "output": 42}, "content is not text"),
    ({"instruction": ["Q"], "output": "A"}, "content is not text"),
    ({"instruction": float("nan"), "output": "A"}, "content is not text"),
    ({"prompt": "Q"}, "no answer"),
    ({"completion": "A"}, "no user turn"),
    ({"prompt": {"role": "user"}, "completion": "A"}, "content is not text"),
    ({"question": "Q", "answer": ""}, "empty answer"),
    ({"text": "  \n"}, "empty text"),
    ({"text": 5}, "content is not text"),
    ({"text": None}, "empty text"),
    ({"messages": []}, "no user turn"),
    (messages(("system", "S"), ("assistant", "A")), "no user turn"),
    (messages(("user", "Q")), "no answer"),
    (messages(("user", "Q"), ("assistant", None)), "no answer"),
    (messages(("user", None), ("assistant", "A")), "content is not text"),
    (messages(("user", "Q"), ("assistant", "")), "empty answer"),
    (messages(("user", " "), ("assistant", "A")), "empty turn"),
    (messages(("user", "Q"), ("user", "Q"), ("assistant", "A")), "roles do not alternate"),
    (messages(("user", ["Q"]), ("assistant", "A")), "content is not text"),
    (messages(("user", "Q"), ("narrator", "x"), ("assistant", "A")), "unknown role"),
    (messages(("user", "Q"), ("tool", "x"), ("assistant", "A")), "tool answer without a call"),
    (messages((7, "Q"), ("assistant", "A")), "unknown role"),
    (messages((None, "Q"), ("assistant", "A")), "unknown role"),
    (messages(("user", IMAGE), ("assistant", "A")), "holds an image"),
    (messages(("user", [{"type": "input_audio", "input_audio": {}}]), ("assistant", "A")), "holds audio"),
    (messages(("user", [{"image": "x"}]), ("assistant", "A")), "holds an image"),
    ({**sharegpt(*QA), "image": "a.jpg"}, "holds an image"),
    ({"prompt": "Q", "chosen": "A", "rejected": "B"}, "preference pair: needs a preference trainer"),
    ({"chosen": openai(QA), "rejected": openai(QA)}, "preference pair: needs a preference trainer"),
    ({**messages(*QA), "chosen": "A", "rejected": "B"}, "preference pair: needs a preference trainer"),
    ({"prompt": "Q", "completion": "A", "label": False}, "preference pair: needs a preference trainer"),
]


@pytest.mark.parametrize(("row", "reason"), UNUSABLE)
def test_unusable_rows_have_a_stable_reason(row, reason):
    with pytest.raises(Rejected) as refusal:
        convert(row)
    assert str(refusal.value) == reason


@pytest.mark.parametrize(
    ("declared", "row"),
    [
        ("alpaca", {"prompt": "Q", "completion": "A"}),
        ("prompt_completion", {"instruction": "Q", "output": "A"}),
        ("prompt_completion", {"question": "Q", "answer": "A"}),
        ("messages", sharegpt(("human", "Q"), ("gpt", "A"))),
        ("messages", {"instruction": "Q", "output": "A"}),
        ("sharegpt", {"text": "T"}),
        ("text", {"instruction": "Q", "output": "A"}),
        ("mapped", {"question": "Q", "answer": "A"}),
    ],
)
def test_a_declared_shape_is_binding(declared, row):
    with pytest.raises(Rejected, match="unknown shape"):
        convert(row, declared)


def test_a_preference_pair_is_named_as_such_also_where_something_else_was_declared():
    with pytest.raises(Rejected, match="preference trainer"):
        convert({"chosen": "A", "rejected": "B"}, "alpaca")


def test_metadata_is_the_object_plus_leftover_scalars():
    row = {
        "id": "7",
        "instruction": "Q",
        "input": "",
        "output": "A",
        "metadata": {"topic": "maths", "tags": ["a", float("nan")], "score": float("inf")},
        "topic": "loses",
        "score": 3,
        "ok": False,
        "empty": "",
        "none": None,
        "list": [1],
        "missing": float("nan"),
    }
    assert convert(row).metadata == {"topic": "maths", "tags": ["a"], "score": 3, "ok": False}
    assert convert({"question": "Q", "answer": "A", "metadata": "csv text"}).metadata == {
        "metadata": "csv text"
    }


def test_what_was_read_is_told_in_words():
    row = {"output": "A", "instruction": "Q", "topic": "t"}
    converted = convert(row)
    assert describe(converted.format, converted.used) == "looks like alpaca; using instruction, output"
    assert describe("text", ("body",)) == "looks like plain text; using body"
    assert describe("mapped", ("frage", "antwort")) == "mapped by the config; using frage, antwort"
