import math
import unicodedata
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.quality.labels import Labels, evenness
from core.data.quality.languages import SAMPLE, in_sample, language_of
from core.data.quality.lengths import Lengths
from core.data.quality.markers import count_markers, marker_patterns
from core.data.quality.scripts import count_scripts, is_mixed, mixed_words
from core.data.quality.words import Words, ended, pieces

TEXT = st.text(st.sampled_from("aZ9éɛƆжλ字กั\u0301مहि²_- \n.,'\0😀"), max_size=40)


def words_one_by_one(text):
    words, alone = [], False
    for sign in text:
        if unicodedata.category(sign)[0] not in "LMN":
            words.append("")
        elif sign in "字ก":
            words.append(sign)
        elif words and words[-1] and not (alone and sign != "ั"):
            words[-1] += sign
        else:
            words.append(sign)
        alone = sign in "字ก" or (sign == "ั" and alone)
    return [word for word in words if word]


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6))
def test_words_of_a_batch_are_those_of_its_texts_one_by_one(texts):
    texts = [
        text.replace("ั", "กั").replace("字\u0301", "字").replace("ก\u0301", "ก").replace("ั\u0301", "ั")
        for text in texts
    ]
    words = Words.of(*ended(pa.array(texts)))
    spelled = [words.text(n) for n in range(len(words.starts))]
    expected = [words_one_by_one(text) for text in texts]
    assert spelled == [word for row in expected for word in row]
    assert words.per_row().tolist() == [len(row) for row in expected]


def test_pieces_hold_every_text_once_and_in_order():
    texts = pa.array(["x" * 700_000, "y", "", "z" * 3_000_000, "w"] * 2)[1:]
    parts = list(pieces(texts))
    assert [text for _, part in parts for text in part.to_pylist()] == texts.to_pylist()
    assert [start for start, _ in parts] == np.cumsum([0, *(len(part) for _, part in parts)])[:-1].tolist()
    assert len(parts) > 3


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=6))
def test_letters_are_counted_by_the_script_in_their_name(texts):
    names = {"CJK": "Han", "THAI": "Thai", "ARABIC": "Arabic", "DEVANAGARI": "Devanagari"}
    letters = [sign for text in texts for sign in text if sign.isalpha()]
    first = [unicodedata.name(sign).split()[0] for sign in letters]
    expected = Counter(names.get(name, name.capitalize()) for name in first)
    assert count_scripts(Words.of(*ended(pa.array(texts)))) == expected


@pytest.mark.parametrize("word", ["εyε", "sε", "Мensah", "pаpa", "привeт", "kͻ", "єyє"])
def test_lookalikes_inside_a_word_are_noticed(word):
    assert is_mixed(word)
    texts = pa.array(["all is fine", f"a word {word}, twice {word}"])
    assert mixed_words(Words.of(*ended(texts))) == {1: word}


@pytest.mark.parametrize(
    "word", ["ɛyɛ", "Δx", "2πr", "sinα", "λx", "μm", "привет", "αβγ", "SMSка", "kΩ", "ascii"]
)
def test_true_words_and_formulas_are_not(word):
    assert not is_mixed(word)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4095), min_size=1, max_size=50))
def test_quantiles_of_lengths_are_exact(lengths):
    profile = Lengths.of(np.array(lengths)).profile("words")
    ordered = sorted(lengths)
    assert profile.median == ordered[math.ceil(0.5 * len(lengths)) - 1]
    assert profile.p95 == ordered[math.ceil(0.95 * len(lengths)) - 1]
    assert profile.mean == pytest.approx(sum(lengths) / len(lengths))
    assert (profile.n, profile.largest) == (len(lengths), max(lengths))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=30), st.lists(st.integers(0, 2**31), max_size=30))
def test_lengths_of_parts_add_up_and_fit_the_histogram(left, right):
    both = Lengths.of(np.array(left)).merged(Lengths.of(np.array(right, np.int64)))
    profile = both.profile("words")
    assert profile == Lengths.of(np.array(left + right)).profile("words")
    counts, _ = np.histogram(left + right, profile.histogram.edges)
    assert profile.histogram.counts == tuple(counts) and counts.sum() == len(left + right)
    exact = sorted(left + right)[math.ceil(0.95 * len(left + right)) - 1]
    assert exact * (1 - 1 / 128) <= profile.p95 <= exact


def test_no_lengths_make_an_empty_profile():
    profile = Lengths.of(np.zeros(0, np.int64)).profile("words")
    assert (profile.n, profile.mean, profile.median, sum(profile.histogram.counts)) == (0, 0, 0, 0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=8))
def test_evenness_is_entropy_over_its_largest_value(counts):
    total = sum(counts)
    expected = sum(n / total * math.log2(total / n) for n in counts) / math.log2(len(counts))
    assert evenness(counts) == pytest.approx(expected)


def test_evenness_at_its_ends():
    assert evenness([7, 7, 7]) == pytest.approx(1)
    assert evenness([7]) == evenness([]) == 0
    assert evenness([3, 1]) == pytest.approx(0.811278, abs=1e-6)


def test_fields_with_few_values_are_labels():
    rows = [
        {"topic": "ab"[n % 2], "source": f"s{n}", "grade": n % 3, "tags": ["x"], "note": "x" * 200}
        for n in range(12)
    ]
    rows.append({"topic": None})
    found = {label.field: label for label in Labels.of(rows, answers=["yes"] * 9 + ["no"] * 4).balances()}
    assert set(found) == {"topic", "grade", "answer"}
    assert found["topic"].counts == {"a": 6, "b": 6} and found["topic"].missing == 1
    assert found["grade"].counts == {"0": 4, "1": 4, "2": 4}
    assert found["answer"].counts == {"yes": 9, "no": 4}


def test_named_fields_are_counted_whatever_their_values():
    rows = [{"id": n, "topic": "a"} for n in range(2000)]
    [label] = Labels.of(rows, ["id"]).balances()
    assert label.field == "id" and len(label.counts) == 30 and label.others == 1970


VALUES = st.sampled_from(["a", "b", 1, True, 1.5, None, ["l"], "x" * 99])
ROW = st.dictionaries(st.sampled_from(["p", "q", "r"]), VALUES)


@settings(max_examples=60, deadline=None)
@given(st.lists(ROW, max_size=9), st.lists(ROW, max_size=9), st.lists(ROW, max_size=9))
def test_labels_do_not_depend_on_the_division_into_parts(one, two, three):
    whole = Labels.of(one + two + three).balances()
    a, b, c = map(Labels.of, (one, two, three))
    assert (
        a.merged(b).merged(c).balances()
        == a.merged(b.merged(c)).balances()
        == c.merged(a).merged(b).balances()
        == whole
    )


def test_memory_stays_bounded_however_many_values_and_fields_there_are():
    many = Labels.of([{"id": f"a{n}"} for n in range(900)]).merged(
        Labels.of([{"id": f"b{n}"} for n in range(900)])
    )
    assert not many.values and many.given_up == {"id"}
    wide = Labels.of([{f"f{n}": 1} for n in range(5000)])
    assert not wide.values and not wide.merged(Labels.of([{"f": 1}] * 4)).balances()


def test_markers_are_whole_words_or_letters_in_any_case():
    patterns = marker_patterns({"twi": ("ɛ", "Ɔ"), "ghana": ("Accra", "waakye"), "none": ("",)})
    texts = pa.array(["SƐ", "kɔ", "in ACCRA.", "Accrafoɔ", "waakye", "e o", "mowaakyee"])
    assert count_markers(texts, patterns) == {"twi": 3, "ghana": 2}


def test_languages_are_told_where_there_is_enough_to_tell():
    assert language_of("The cat sat on the mat and looked at me for a long time.") == "en"
    assert language_of("Der Hund läuft durch den Wald und sucht seinen Ball.") == "de"
    assert language_of("12 + 30 = 42") == language_of("ok") == language_of("") == "und"


def test_the_sample_depends_on_row_numbers_alone():
    total = 400_000
    whole = in_sample(np.arange(total), total)
    parts = [in_sample(np.arange(start, start + 50_000), total) for start in range(0, total, 50_000)]
    assert (whole == np.concatenate(parts)).all()
    assert whole.sum() == pytest.approx(SAMPLE, rel=0.03)
    assert in_sample(np.arange(100), 100).all()
