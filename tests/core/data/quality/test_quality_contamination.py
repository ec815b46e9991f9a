import re

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.quality.contamination import Benchmark, fold

SENTENCE = st.lists(st.sampled_from(["one", "Two", "tHREE", "ɛyɛ", "Straße", "x", "4"]), max_size=9)
TEXTS = st.lists(st.tuples(SENTENCE, st.sampled_from([" ", ", ", "\n", " - "])), min_size=1, max_size=6).map(
    lambda drawn: [sign.join(words) for words, sign in drawn]
)


def folded(text):
    return re.findall(r"\w+", text.casefold())


def contains(words, sequence):
    return any(words[n : n + len(sequence)] == sequence for n in range(len(words) - len(sequence) + 1))


def by_hand(rows, items, ngram):
    hit_rows, hit_items = set(), set()
    for i, item in enumerate(map(folded, items)):
        if len(item) < 3:
            continue
        size = min(ngram, len(item))
        grams = [item[n : n + size] for n in range(len(item) - size + 1)]
        for j, row in enumerate(map(folded, rows)):
            if any(contains(row, gram) for gram in grams):
                hit_rows.add(j)
                hit_items.add(i)
    return sorted(hit_rows), len(hit_items)


def find(rows, benchmark, first=0):
    numbers = np.arange(first, first + len(rows))
    return benchmark.find(pa.array(rows, pa.string()), numbers, [f"f:{n}" for n in numbers])


@settings(max_examples=60, deadline=None)
@given(TEXTS, TEXTS, st.integers(3, 6))
def test_the_same_rows_and_items_as_word_by_word(rows, items, ngram):
    benchmark = Benchmark.of(items, ngram)
    overlap = find(rows, benchmark)
    report = benchmark.report(overlap, removes=False)
    assert (overlap.rows.tolist(), report.items_hit) == by_hand(rows, items, ngram)
    assert report.items == sum(len(folded(item)) >= 3 for item in items) == len(items) - benchmark.ignored


@settings(max_examples=40, deadline=None)
@given(TEXTS, TEXTS, TEXTS, TEXTS)
def test_parts_add_up_in_any_order(one, two, three, items):
    benchmark = Benchmark.of(items, 4)
    a, b, c = (
        find(one, benchmark),
        find(two, benchmark, len(one)),
        find(three, benchmark, len(one) + len(two)),
    )
    whole = benchmark.report(find(one + two + three, benchmark), removes=True)
    for merged in (a.merged(b).merged(c), a.merged(b.merged(c)), c.merged(a).merged(b)):
        assert benchmark.report(merged, removes=True) == whole


def test_sequences_do_not_cross_rows():
    benchmark = Benchmark.of(["alpha beta gamma delta"], 4)
    assert not find(["alpha beta", "gamma delta"], benchmark).rows.size
    [shared] = find(["x", "Alpha, BETA\n(gamma) delta!"], benchmark).examples
    assert (shared.ordinal, shared.origin, shared.words) == (1, "f:1", "alpha beta gamma delta")


def test_equal_hashes_alone_accuse_nobody(monkeypatch):
    import core.data.quality.contamination as module

    monkeypatch.setattr(module, "_word_hashes", lambda words: np.zeros(len(words.starts), np.uint64))
    benchmark = Benchmark.of(["alpha beta gamma delta"], 4)
    assert not find(["beta alpha gamma delta", "alphA beta gamma delts"], benchmark).rows.size


def test_rows_longer_than_a_block_are_searched_to_the_end():
    needle = "the very last words of it"
    rows = ["a bc " * 120_000 + needle, "x" * 700_000 + " " + needle]
    assert find(rows, Benchmark.of([needle], 6)).rows.tolist() == [0, 1]


def test_case_composition_and_invisible_signs_do_not_hide_a_row():
    words = fold(pa.array(["STRASSE e\u0301te\u0301 ɛ\u200byɛ"]))
    assert [words.text(n) for n in range(3)] == ["strasse", "été", "ɛyɛ"]


def test_no_rows_and_no_usable_items_are_no_trouble():
    benchmark = Benchmark.of(["Paris", ""], 8)
    assert benchmark.ignored == 2
    assert not find(["Paris is big", ""], benchmark).rows.size
    assert not find([], benchmark).rows.size
