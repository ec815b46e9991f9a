import pytest

from core.data.formats import Rejected, convert, detect


def said(row, declared="auto"):
    return [(turn.role, turn.content) for turn in convert(row, declared).messages]


QA = [("user", "Q"), ("assistant", "A")]
SQA = [("system", "S"), *QA]


@pytest.mark.parametrize(
    ("row", "shape", "expected"),
    [
        ({"instruction": "Q", "input": "", "output": "A"}, "alpaca", QA),
        ({"instruction": "Q", "input": None, "output": "A"}, "alpaca", QA),
        ({"instruction": " Q\n", "output": "A "}, "alpaca", QA),
        ({"instruction": "S", "input": "Q", "output": "A"}, "alpaca", SQA),
        ({"input": "Q", "output": "A"}, "alpaca", QA),
        ({"messages": [{"role": r, "content": c} for r, c in SQA]}, "messages", SQA),
        ({"conversations": [{"role": r, "content": c} for r, c in QA * 2]}, "messages", QA * 2),
        (
            {"messages": [{"role": "system", "content": " "}, *({"role": r, "content": c} for r, c in QA)]},
            "messages",
            QA,
        ),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "sharegpt", QA),
        (
            {"conversations": [{"from": r, "value": c} for r, c in SQA]},
            "sharegpt",
            SQA,
        ),
        ({"messages": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}]}, "sharegpt", QA),
        ({"prompt": "Q", "completion": "A"}, "prompt_completion", QA),
        ({"question": "Q", "answer": "A"}, "prompt_completion", QA),
        ({"prompt": "ignored", "question": "Q", "answer": "A"}, "prompt_completion", QA),
    ],
)
def test_shapes(row, shape, expected):
    assert detect(row) == shape
    assert said(row) == expected
    assert said(row, shape) == expected


def messages(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "unknown shape"),
        ({"text": "x"}, "unknown shape"),
        ({"messages": "x"}, "unknown shape"),
        ({"messages": ["x"]}, "unknown shape"),
        ({"messages": [{"role": "user"}]}, "unknown shape"),
        ({"instruction": "Q"}, "no answer"),
        ({"instruction": "Q", "output": None}, "no answer"),
        ({"instruction": "Q", "output": " \n"}, "empty answer"),
        ({"instruction": "", "input": "", "output": "A"}, "no user turn"),
        ({"output": "A"}, "no user turn"),
        ({"instruction": "Q", "output": 42}, "content is not text"),
        ({"instruction": ["Q"], "output": "A"}, "content is not text"),
        ({"prompt": "Q"}, "no answer"),
        ({"completion": "A"}, "no user turn"),
        ({"question": "Q", "answer": ""}, "empty answer"),
        ({"messages": []}, "no user turn"),
        (messages(("system", "S"), ("assistant", "A")), "no user turn"),
        (messages(("user", "Q")), "no answer"),
        (messages(("user", "Q"), ("assistant", None)), "no answer"),
        (messages(("user", None), ("assistant", "A")), "content is not text"),
        (messages(("user", "Q"), ("assistant", "")), "empty answer"),
        (messages(("user", " "), ("assistant", "A")), "empty turn"),
        (messages(("user", "Q"), ("user", "Q"), ("assistant", "A")), "roles do not alternate"),
        (messages(("user", [{"type": "text", "text": "Q"}]), ("assistant", "A")), "content is not text"),
        (messages(("user", "Q"), ("tool", "x"), ("assistant", "A")), "unknown role"),
        (messages((7, "Q"), ("assistant", "A")), "unknown role"),
    ],
)
def test_unusable_rows_have_a_stable_reason(row, reason):
    with pytest.raises(Rejected) as refusal:
        convert(row)
    assert str(refusal.value) == reason


@pytest.mark.parametrize(
    ("declared", "row"),
    [
        ("alpaca", {"prompt": "Q", "completion": "A"}),
        ("prompt_completion", {"instruction": "Q", "output": "A"}),
        ("messages", {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}),
        ("sharegpt", messages(*QA)),
        ("messages", {"instruction": "Q", "output": "A"}),
    ],
)
def test_a_declared_shape_is_binding(declared, row):
    with pytest.raises(Rejected, match="unknown shape"):
        convert(row, declared)


def test_metadata_is_the_object_plus_leftover_scalars():
    row = {
        "id": "7",
        "instruction": "Q",
        "input": "",
        "output": "A",
        "metadata": {"topic": "maths", "tags": ["a"]},
        "topic": "loses",
        "score": 3,
        "ok": False,
        "empty": "",
        "none": None,
        "list": [1],
    }
    assert convert(row).metadata == {"topic": "maths", "tags": ["a"], "score": 3, "ok": False}
    assert convert({"question": "Q", "answer": "A", "metadata": "csv text"}).metadata == {
        "metadata": "csv text"
    }
