"""The look at the tokens: sound rows pass, and every planted fault is found with its fix."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from core.data.batches import truncate
from core.data.chat import IGNORE_INDEX, ChatTokenizer, Encoded
from core.data.learnable import look, profile, short_examples
from core.data.learning_findings import find, rounded_window, with_overfit
from core.data.learning_reports import MaskCounts, OverfitReport, RoundTrip
from core.data.records import Conversation, Document, Message, ToolCall
from core.data.templates import shipped
from core.data.token_text import TokenText
from core.errors import DataError
from tasks.chat_tokens import chat_tokenizer

BASE = Path(__file__).parents[3] / "data/tutor_base/model"
QUESTIONS = ["What is 3 + 4?", "Wo ho te sɛn?", "How much is a bag of rice in Kumasi?", "Name a river."]
ANSWERS = ["7", "Me ho yɛ, medaase.", "GH₵42 😀", "The Volta"]


def talk(name, *contents, system=None):
    turns = [Message(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(contents)]
    head = [Message(role="system", content=system)] if system else []
    return Conversation(id=name, messages=(*head, *turns))


def rows(n=40):
    return [talk(f"r{k}", f"{QUESTIONS[k % 4]} ({k})", ANSWERS[k % 4]) for k in range(n)]


@pytest.fixture(scope="session")
def base():
    return chat_tokenizer(BASE, "gemma-3")


def found(report, level=None):
    return [each for each in report.findings if level in (None, each.level)]


# What a token spells


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_the_pieces_joined_are_the_text(base, text):
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(TokenText(base.tokenizer).spell(ids)) == text


@pytest.mark.parametrize("text", ["Wo ho te sɛn? 😀", " two  spaces ", "a\nb\tc", "<s>Ama", "Ɛyɛ\ufffd fine"])
def test_every_kind_of_tokenizer_is_spelled_as_it_decodes(make_tokenizer, text):
    tokenizer = make_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert "".join(TokenText(tokenizer).spell(ids)) == tokenizer.decode(ids)


@pytest.mark.parametrize(
    ("pieces", "decoder", "text"),
    [
        (["▁Me", "▁ho", "yɛ"], decoders.Metaspace(), "Me hoyɛ"),
        (["Me", "ho", "##yɛ"], decoders.WordPiece(cleanup=False), "Me hoyɛ"),
    ],
)
def test_words_in_pieces_are_spelled_as_they_decode(pieces, decoder, text):
    tokenizer = Tokenizer(models.WordLevel({piece: n for n, piece in enumerate(pieces)}))
    tokenizer.decoder = decoder
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    assert "".join(TokenText(wrapped).spell([0, 1, 2])) == text == tokenizer.decode([0, 1, 2])


def test_a_character_of_several_tokens_stands_whole_at_the_last(make_tokenizer):
    tokenizer = make_tokenizer()
    ids = tokenizer("😀", add_special_tokens=False)["input_ids"]
    pieces = TokenText(tokenizer).spell(ids)
    assert len(pieces) >= 4
    assert pieces[-1] == "😀"
    assert not any(piece.strip() for piece in pieces[:-1])


def test_bytes_that_make_no_character_are_shown_in_hexadecimal(base):
    speller, tokenizer = TokenText(base.tokenizer), base.tokenizer
    ids = tokenizer("😀", add_special_tokens=False)["input_ids"]
    end = tokenizer.eos_token_id
    assert "".join(speller.spell(ids[:2])) == "⟨F0⟩⟨9F⟩"
    assert "".join(speller.spell([*ids[:2], end, *ids])) == "⟨F0⟩⟨9F⟩<|end|>😀"
    assert "".join(speller.spell(ids[1:])) == "⟨9F⟩⟨98⟩⟨80⟩"


# Sound rows


def test_sound_rows_have_no_findings(base):
    report = look(rows(), base, 256)
    assert report.findings == ()
    assert report.counts.closed_share == 1.0
    assert (report.round_trip.checked, report.round_trip.failures) == (40, 0)


def test_the_counts_are_those_of_a_plain_loop(base):
    sample = [*rows(), talk("two", "a?", "b", "c?", "d"), talk("sys", "a?", "b", system="Be kind.")]
    counts = look(sample, base, 24).counts
    examples = [example for row in sample for example in base.encode(row)]
    labels = [label for example in examples for label in example.labels]
    assert counts.tokens == len(labels)
    assert counts.trained_tokens == sum(label != IGNORE_INDEX for label in labels)
    assert counts.answers == 43
    tails = [example.labels[24:] for example in examples]
    assert counts.lost_tokens == sum(len(tail) for tail in tails)
    assert counts.lost_trained_tokens == sum(label != IGNORE_INDEX for tail in tails for label in tail)


@pytest.mark.parametrize("window", [8, 12, 16, 20, 24, 64])
def test_what_the_window_cuts_is_what_training_cuts(base, window):
    sample = rows()
    counts = look(sample, base, window).counts
    cut = truncate((e for row in sample for e in base.encode(row)), window)
    assert counts.untrained_rows == cut.dropped
    assert counts.cut_examples == cut.shortened + cut.dropped


@pytest.mark.parametrize("name", ["chatml", "llama-3", "gemma-3", "mistral", "zephyr"])
def test_every_shipped_template_is_sound_with_every_kind_of_tokenizer(make_tokenizer, name):
    chat = ChatTokenizer(make_tokenizer(), shipped(name))
    call = Message(role="assistant", content="", tool_calls=(ToolCall(name="add", arguments='{"a": 1}'),))
    tool = Message(role="tool", content="3", name="add")
    asked = Message(role="user", content="1 + 2?")
    tools = Conversation(id="tool", messages=(asked, call, tool, Message(role="assistant", content="3")))
    report = look([*rows(8), talk("two", "a?", "b", "c?", "d", system="Be kind."), tools], chat, 512)
    assert found(report, "error") == []
    assert report.round_trip.failures == 0, report.round_trip.first
    assert report.counts.closed_answers == report.counts.answers == 12


def test_plain_texts_are_trained_whole(base):
    report = look(
        [Document(id=f"d{n}", text="Accra is the capital of Ghana. " * n) for n in range(1, 30)], base, 64
    )
    assert found(report, "error") == []
    # The first token of each window has nothing to be predicted from.
    assert report.counts.trained_tokens == report.counts.tokens - report.counts.examples
    assert report.counts.closed_answers == report.counts.answers == 29


def test_without_rows_there_is_nothing_to_look_at(base):
    with pytest.raises(DataError, match="no rows"):
        look([], base, 64)


# Planted faults


class Broken(ChatTokenizer):
    """Encodes, and then spoils what it encoded."""

    def __init__(self, whole, spoil):
        super().__init__(whole.tokenizer, whole.template)
        self.spoil = spoil

    def encode_all(self, conversations):
        return [[self.spoil(example) for example in each] for each in super().encode_all(conversations)]


def without_end(example):
    last = max(n for n, label in enumerate(example.labels) if label != IGNORE_INDEX)
    return Encoded(example.input_ids, [*example.labels[:last], IGNORE_INDEX, *example.labels[last + 1 :]])


def all_masked(example):
    return Encoded(example.input_ids, [IGNORE_INDEX] * len(example.labels))


def only_the_first(example):
    return Encoded(example.input_ids, [example.input_ids[0], *[IGNORE_INDEX] * (len(example.labels) - 1)])


def doubled_bos(example):
    return Encoded([example.input_ids[0], *example.input_ids], [IGNORE_INDEX, *example.labels])


def one_early(example):
    first = next(n for n, label in enumerate(example.labels) if label != IGNORE_INDEX)
    labels = list(example.labels)
    labels[first - 1] = example.input_ids[first - 1]
    return Encoded(example.input_ids, labels)


def another_letter(example):
    return Encoded([*example.input_ids[:2], example.input_ids[2] + 1, *example.input_ids[3:]], example.labels)


def test_an_end_of_turn_outside_the_mask_is_an_error(base):
    report = look(rows(), Broken(base, without_end), 256)
    assert report.counts.closed_answers == 0
    assert any("would not learn to stop" in each.what for each in report.errors)


def test_one_open_answer_among_many_is_an_error(base):
    sample = rows()
    odd = base.encode(sample[7])[0]
    chat = Broken(base, lambda example: without_end(example) if example == odd else example)
    report = look(sample, chat, 256)
    assert report.counts.closed_share == pytest.approx(39 / 40)
    assert "the end of 1 of 40 answers" in report.errors[0].what


@pytest.mark.parametrize("spoil", [all_masked, only_the_first])
def test_rows_without_any_trained_token_are_an_error(base, spoil):
    # The first token is never predicted, so a label there trains nothing.
    report = look(rows(), Broken(base, spoil), 256)
    assert report.counts.untrained_rows == 40
    assert any("no row has a trained token" in each.what for each in report.errors)
    assert report.counts.trained_share == 0


def test_doubled_tokens_of_beginning_are_an_error(base):
    report = look(rows(), Broken(base, doubled_bos), 256)
    assert report.counts.doubled_bos == 40
    assert any("two tokens of beginning" in each.what for each in report.errors)


def test_a_mask_that_starts_too_early_is_an_error(base):
    report = look(rows(), Broken(base, one_early), 256)
    assert (report.round_trip.answer_failures, report.round_trip.text_failures) == (40, 0)
    assert any("not exactly the answers" in each.what for each in report.errors)
    assert "<|assistant|>" in report.round_trip.first


def test_tokens_that_spell_another_text_are_an_error(base):
    report = look(rows(), Broken(base, another_letter), 256)
    assert report.round_trip.text_failures == 40
    assert report.round_trip.prompt_failures == 40
    assert any("do not lead back to the text" in each.what for each in report.errors)


def test_a_tokenizer_that_loses_capitals_is_found_by_the_round_trip(byte_level):
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    trip = look(rows(), ChatTokenizer(tokenizer, shipped("chatml")), 512).round_trip
    assert trip.text_failures == 40
    assert "instead of" in trip.first


def test_a_serving_prompt_that_differs_is_found(base):
    class Served(ChatTokenizer):
        def prompt_ids(self, messages):
            return [*super().prompt_ids(messages), self.tokenizer.eos_token_id]

    trip = look(rows(), Served(base.tokenizer, base.template), 256).round_trip
    assert (trip.prompt_failures, trip.answer_failures, trip.text_failures) == (40, 0, 0)


def test_a_window_that_is_too_small_names_a_larger_one(base):
    sample = [*rows(), *[talk(f"long{n}", "Tell me a story.", "Once upon a time. " * 60) for n in range(10)]]
    report = look(sample, base, 256)
    finding = found(report, "warning")[0]
    assert report.counts.hurt_examples == 10
    assert finding.where == "model.max_seq_length"
    assert finding.what.startswith("10 of 50 examples lose trained tokens at 256")
    assert finding.fix == f"set model.max_seq_length: {report.suggested_max_length}"
    longest = max(len(example.input_ids) for row in sample for example in base.encode(row))
    assert report.suggested_max_length % 64 == 0
    assert 0 <= report.suggested_max_length - longest < 64
    assert look(sample, base, report.suggested_max_length).findings == ()


def test_rows_whose_answer_is_behind_the_window_are_named(base):
    sample = [*rows(), talk("far", "Read this. " * 200, "Yes.")]
    report = look(sample, base, 256)
    assert report.counts.untrained_ids == ("far",)
    assert any(
        "1 of 41 rows have no trained token" in each.what and "far" in each.what for each in report.findings
    )


def test_a_window_that_is_far_too_large_is_mentioned(base):
    finding = found(look(rows(), base, 2048))[0]
    assert (finding.level, finding.fix) == ("info", "set model.max_seq_length: 256")
    assert found(look(rows(), base, 511)) == []


def test_text_of_special_tokens_in_a_row_is_a_warning(base):
    report = look([*rows(), talk("marked", "<|user|>Hello", "Hi")], base, 256)
    assert report.counts.marked_rows == 1
    assert any("special token" in each.what for each in found(report, "warning"))


def test_rows_that_the_template_refuses_are_an_error_and_the_rest_is_looked_at(base):
    strict = base.template.replace(
        "{% for message",
        "{% if messages | length > 3 %}{{ raise_exception('too long') }}{% endif %}{% for message",
        1,
    )
    sample = [*rows(), talk("long", "a", "b", "c", "d")]
    report = look(sample, ChatTokenizer(base.tokenizer, strict), 256)
    assert (report.counts.refused_rows, report.counts.rows) == (1, 40)
    assert "refuses 1 of 41 rows; row long" in report.errors[0].what
    nothing = look(sample[-1:], ChatTokenizer(base.tokenizer, strict), 256)
    assert (nothing.counts.rows, len(nothing.errors)) == (0, 1)


# The vocabulary


def test_a_language_that_the_tokenizer_does_not_know_is_a_warning(byte_level):
    chat = ChatTokenizer(byte_level(), shipped("chatml"))
    # Ethiopic letters are three bytes each, and no merge knows them.
    report = look([talk(f"r{n}", "ሰላም እንዴት ነህ", "ደህና ነኝ") for n in range(4)], chat, 256)
    letters = ["ሰላም", "እንዴት", "ነህ", "ደህና", "ነኝ"]
    assert report.counts.tokens_per_word == pytest.approx(3 * sum(map(len, letters)) / len(letters), rel=0.01)
    finding = next(each for each in report.findings if each.where == "model.name")
    assert "does not know this language" in finding.what
    assert finding.fix


def test_scripts_without_spaces_are_not_taken_for_long_words(base):
    report = look([talk("zh", "你好吗", "我很好")], base, 256)
    assert report.counts.words == 6


def test_digits_and_punctuation_are_no_words(base):
    counts = look([talk("sum", "123 + 456 = ?", "579.")], base, 256).counts
    assert (counts.words, counts.tokens_per_word) == (0, 0.0)


def test_unknown_tokens_are_counted():
    vocabulary = {"<unk>": 0, "</s>": 1, "yes": 2, "no": 3, ":": 4}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False)])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")
    template = "{% for m in messages %}{{ ':' + m.content }}{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}"
    template += "{% if add_generation_prompt %}:{% endif %}"
    report = look([talk("r", "maybe", "yes")], ChatTokenizer(wrapped, template), 256)
    assert report.counts.unknown_tokens == 1
    assert any("vocabulary lacks" in each.what for each in report.findings)


# The mask view


def test_the_shown_tokens_are_the_text_and_the_mask_is_the_answer(base):
    sample = [*rows(), talk("two", "Wo ho te sɛn?", "Me ho yɛ 😀", "Ɛdeɛn?", "Hwee")]
    shown = {example.label: example for example in look(sample, base, 256).examples}
    two = shown["a row with several answers"]
    assert "".join(token.text for token in two.tokens) == base.render(sample[-1].messages)
    trained = "".join(token.text for token in two.tokens if token.trained)
    assert trained == "Me ho yɛ 😀<|end|>Hwee<|end|>"
    assert {token.text for token in two.tokens if token.special} >= {
        "<|bos|>",
        "<|user|>",
        "<|assistant|>",
        "<|end|>",
    }
    assert "a row of median length" in shown


def test_the_median_row_is_shown(base):
    lengths = sorted((len(base.encode(row)[0].input_ids), n) for n, row in enumerate(rows(9)))
    shown = look(rows(9), base, 256).examples[0]
    assert (shown.n_tokens, shown.id) == (lengths[4][0], f"r{lengths[4][1]}")


def test_a_long_example_is_shown_in_part_with_what_is_cut_off(base):
    row = talk("long", "Read this. " * 400, "Yes, I did.")
    whole = base.encode(row)[0]
    shown = look([row], base, len(whole.input_ids) - 3).examples[0]
    assert len(shown.tokens) + shown.omitted == shown.n_tokens == len(whole.input_ids)
    assert len(shown.tokens) == 400
    head, tail = shown.tokens[: shown.omitted_at], shown.tokens[shown.omitted_at :]
    ids = [token.id for token in head] + whole.input_ids[len(head) : len(head) + shown.omitted]
    assert ids + [token.id for token in tail] == whole.input_ids
    assert len(shown.tokens) - shown.lost_from == 3
    assert look([row], base, 5000).examples[0].lost_from is None
    assert look([row], base, 10).examples[0].lost_from == 10


def test_a_report_survives_json(base):
    report = look(rows(), base, 256)
    assert type(report).model_validate_json(report.model_dump_json()) == report


# Lengths


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=200))
@settings(max_examples=60, deadline=None)
def test_the_profile_counts_every_length_once(lengths):
    result = profile(np.array(lengths))
    edges, counts = result.histogram.edges, result.histogram.counts
    assert len(edges) == len(counts) + 1
    assert list(edges) == sorted(set(edges))
    assert sum(counts) == result.n == len(lengths)
    inside = [sum(low <= length < high for length in lengths) for low, high in itertools.pairwise(edges)]
    assert list(counts) == inside
    assert result.largest == max(lengths)
    assert result.mean == pytest.approx(sum(lengths) / len(lengths))


@given(st.integers(0, 200_000))
@settings(max_examples=60, deadline=None)
def test_a_suggested_window_is_the_next_multiple_of_64(tokens):
    window = rounded_window(tokens)
    assert window % 64 == 0
    assert window >= max(256, tokens)
    assert window == 256 or window - tokens < 64


# Choosing a batch, and verdicts


def test_the_batch_is_short_and_asks_nothing_twice(base):
    sample = [*rows(), talk("same", QUESTIONS[0], "7"), talk("other", QUESTIONS[0], "8")]
    batch = short_examples(sample, base, 256, n=8)
    assert len(batch) == 8
    prompts = [
        tuple(i for i, label in zip(*example, strict=True) if label == IGNORE_INDEX) for example in batch
    ]
    assert len(set(prompts)) == 8
    lengths = sorted(len(base.encode(row)[0].input_ids) for row in sample)
    assert [len(example.input_ids) for example in batch][-1] <= lengths[12]
    assert short_examples(rows(), base, 5) == []


COUNTS = MaskCounts(
    rows=100, examples=100, tokens=1000, trained_tokens=200, max_length=256, lost_tokens=0, lost_trained_tokens=0,
    cut_examples=0, hurt_examples=0, untrained_rows=0, answers=100, closed_answers=100, doubled_bos=0,
    unknown_tokens=0, words=100, word_tokens=150,
)  # fmt: skip
LENGTHS = profile(np.array([10] * 100))
SOUND = RoundTrip(checked=100, text_failures=0, answer_failures=0, prompt_failures=0)


@pytest.mark.parametrize(
    ("counts", "trip", "levels"),
    [
        ({}, {}, []),
        ({"word_tokens": 400}, {}, []),
        ({"word_tokens": 401}, {}, ["warning"]),
        ({"trained_tokens": 10}, {}, []),
        ({"trained_tokens": 9}, {}, ["info"]),
        ({"closed_answers": 99}, {}, ["error"]),
        ({"untrained_rows": 99}, {}, ["warning"]),
        ({"untrained_rows": 100}, {}, ["error"]),
        ({"cut_examples": 1}, {}, ["info"]),
        ({"cut_examples": 1, "hurt_examples": 1}, {}, ["warning"]),
        ({"max_length": 511}, {}, []),
        ({"max_length": 512}, {}, ["info"]),
        ({}, {"answer_failures": 5}, ["warning"]),
        ({}, {"answer_failures": 6}, ["error"]),
        ({"doubled_bos": 1, "marked_rows": 1}, {}, ["error", "warning"]),
    ],
)
def test_every_limit_has_two_sides(counts, trip, levels):
    result = find(COUNTS.model_copy(update=counts), LENGTHS, 10, SOUND.model_copy(update=trip))
    assert [finding.level for finding in result] == levels


@pytest.mark.parametrize(
    ("verdict", "after", "level"),
    [
        ("learned", 0.1, None),
        ("slow", 0.1, "warning"),
        ("not learned", 2.0, "warning"),
        ("not learned", 2.99, "warning"),
        ("not learned", 2.9999, "error"),
        ("not learned", 4.0, "error"),
        ("not learned", None, "error"),
        ("undecided", 2.0, "info"),
        ("skipped", None, "info"),
    ],
)
def test_every_outcome_of_the_batch_says_what_follows(base, verdict, after, level):
    outcome = OverfitReport(
        verdict=verdict,
        reason="because",
        learning_rate=1e-3,
        trainable_parameters=1,
        loss_before=3.0,
        loss_after=after,
    )
    report = with_overfit(look(rows(), base, 256), outcome)
    assert report.overfit == outcome
    assert [finding.level for finding in report.findings] == ([level] if level else [])
    assert all(finding.fix for finding in report.findings if finding.level != "info")
