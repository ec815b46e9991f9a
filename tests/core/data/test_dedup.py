import unicodedata

import pytest

from core.data.dedup import conversation_key, exact_question_key, normalise, question_key
from core.data.records import Message


def talk(*contents, system=None):
    turns = [Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(contents)]
    return [Message(role="system", content=system), *turns] if system else turns


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("Hello  World", "hello world"),
        ("  a\t\nb\u00a0c ", "a b c"),
        ("ƐYƐ ƆDƆ", "ɛyɛ ɔdɔ"),
        (unicodedata.normalize("NFD", "é à"), "é à"),
        ("Straße", "STRASSE"),
        ("\ufeffa\u200bb", "ab"),
    ],
)
def test_same_after_normalisation(left, right):
    assert normalise(left) == normalise(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("ɛ", "e"),
        ("ɔ", "o"),
        ("ɛ", "ɔ"),
        ("sɛ", "se"),
        ("pàpá", "papa"),
        ("x²", "x2"),
        ("½", "1/2"),
        ("a b", "ab"),
        ("a.", "a"),
    ],
)
def test_different_after_normalisation(left, right):
    assert normalise(left) != normalise(right)


@pytest.mark.parametrize("text", ["Ǆ İ ŉ ﬃ ΐ", "ᾳ\u0345", "  ", "a\u200b b", "\u0130\u0307"])
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


def test_keys_see_what_they_should():
    a, b = talk("Q one", "A"), talk("q  ONE", "A")
    assert question_key(a) == question_key(b)
    assert conversation_key(a) == conversation_key(b)
    assert exact_question_key(a) != exact_question_key(b)
    assert question_key(a) == question_key(talk("Q one", "other"))
    assert exact_question_key(a) == exact_question_key(talk("Q one", "other"))
    assert conversation_key(a) != conversation_key(talk("Q one", "other"))
    assert question_key(a) != question_key(talk("Q one", "A", system="s"))


def test_borders_between_turns_count():
    assert question_key(talk("a b", "x", "c", "y")) != question_key(talk("a", "x", "b c", "y"))
    assert question_key(talk("b", "x", system="a")) != question_key(talk("a", "x", "b", "y"))
