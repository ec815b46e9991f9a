import unicodedata

import pytest

from core.data.dedup import keys_of, normalise, question_wording, whole_wording
from core.data.records import Conversation, Document, Message


def talk(*contents, system=None):
    turns = [Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(contents)]
    messages = [Message(role="system", content=system), *turns] if system else turns
    return Conversation.model_construct(id="x", messages=tuple(messages), metadata={})


def question_key(record):
    return keys_of(record).question


def exact_question_key(record):
    return keys_of(record).exact


def conversation_key(record):
    return keys_of(record).whole


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


def test_a_plain_text_is_its_own_question():
    text = Document(id="x", text="Some  Text")
    assert keys_of(text).question == keys_of(text).whole == keys_of(Document(id="y", text="some text")).whole
    assert keys_of(text).exact != keys_of(Document(id="y", text="some text")).exact


def test_a_short_question_is_compared_together_with_its_system_text():
    twi, ga = (talk("Good morning", "x", system=f"Translate to {name}") for name in ("Twi", "Ga"))
    assert question_wording(twi).text == question_wording(ga).text == "Good morning"
    assert question_wording(twi).salt != question_wording(ga).salt
    assert question_wording(talk("Good morning", "x")).salt == 0


def test_a_long_question_speaks_for_itself_but_a_whole_row_never_does():
    passage = "word " * 30
    one, two = (talk(passage, "x", system=f"Task {name}") for name in ("a", "b"))
    assert question_wording(one).salt == question_wording(two).salt == 0
    assert whole_wording(one).salt != whole_wording(two).salt
