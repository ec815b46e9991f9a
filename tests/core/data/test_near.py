"""Near-duplicates against brute force: every pair found is similar, and hardly a similar one is missed."""

import random
from itertools import combinations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.near import Texts, doubles, find_similar
from core.data.near.bands import BANDS, ROWS, band_keys
from core.data.near.candidates import candidate_pairs
from core.data.near.shingles import shingle
from core.data.near.similar import Similar
from core.data.workers import Inline


def words_of(text):
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def sequences(text):
    words = words_of(text)
    return (
        {tuple(words[i : i + 3]) for i in range(len(words) - 2)}
        if len(words) >= 3
        else {tuple(words) or text}
    )


def jaccard(a, b):
    a, b = sequences(a), sequences(b)
    return len(a & b) / len(a | b)


def read_list(texts):
    return Texts(pa.array(texts, pa.large_string()))


def search(tmp_path, texts, threshold=0.8, parts=3, seed=0):
    jobs = [texts[n::parts] for n in range(parts)]
    order = [number for n in range(parts) for number in range(n, len(texts), parts)]
    found = find_similar(jobs, read_list, threshold=threshold, workers=Inline(), scratch=tmp_path, seed=seed)
    pairs = {tuple(sorted((order[a], order[b]))) for a, b in zip(found.left, found.right, strict=True)}
    return pairs, found


VOCABULARY = [
    f"{a}{b}" for a in ("ba", "ka", "mo", "lu", "ti", "sɛ", "wɔ") for b in ("na", "re", "pi", "do", "x")
]


def planted(count, seed=3):
    """Texts of 25 to 80 words, each with a copy in which some words are exchanged."""
    rng = random.Random(seed)
    texts = []
    for _ in range(count):
        words = [rng.choice(VOCABULARY) + rng.choice(VOCABULARY) for _ in range(rng.randint(25, 80))]
        copy = words[:]
        for _ in range(rng.randint(0, 5)):
            copy[rng.randrange(len(copy))] = rng.choice(VOCABULARY)
        texts += [" ".join(words), " ".join(copy)]
    return texts


def test_what_is_found_is_what_brute_force_finds(tmp_path):
    texts = planted(120)
    pairs, found = search(tmp_path, texts)
    true = {pair for pair in combinations(range(len(texts)), 2) if jaccard(*(texts[i] for i in pair)) >= 0.8}
    assert len(true) > 40
    assert pairs == true
    assert len(found.similarity) == len(pairs)


def test_similarities_are_exact(tmp_path):
    texts = planted(40)
    pairs, found = search(tmp_path, texts, threshold=0.51, parts=1)
    for a, b, value in zip(found.left, found.right, found.similarity, strict=True):
        assert value == pytest.approx(jaccard(texts[a], texts[b]))
    assert pairs


def test_recall_at_the_threshold_follows_the_formula():
    # Pairs of sets with similarity 2/3 exactly share a band with probability 1 - (1 - s^r)^b = 0.9708...
    rng = np.random.default_rng(1)
    hits, trials = 0, 600
    for _ in range(trials):
        common, left, right = (rng.integers(0, 2**63, n, dtype=np.uint64) for n in (80, 20, 20))
        sets = [np.unique(np.concatenate([common, own])) for own in (left, right)]
        both = band_keys(_shingles(sets), seed=int(rng.integers(1 << 30)))
        hits += bool((both[:, 0] == both[:, 1]).any())
    expected = 1 - (1 - (80 / 120) ** ROWS) ** BANDS
    assert abs(hits / trials - expected) < 4 * (expected * (1 - expected) / trials) ** 0.5


def _shingles(sets):
    from core.data.near.shingles import Shingles

    offsets = np.cumsum([0, *(len(s) for s in sets)])
    return Shingles(np.concatenate(sets), offsets, np.zeros(len(sets), np.uint64))


@given(st.lists(st.text(alphabet="ab .,!ɛ\n", max_size=30), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_sets_are_those_of_the_definition(texts):
    made = shingle(read_list(texts))
    sizes = np.diff(made.offsets)
    assert [int(n) for n in sizes] == [len(sequences(text)) for text in texts]
    sets = [set(made.hashes[a:b].tolist()) for a, b in zip(made.offsets, made.offsets[1:], strict=False)]
    for i, j in combinations(range(len(texts)), 2):
        if words_of(texts[i]) and words_of(texts[j]):
            common, whole = len(sets[i] & sets[j]), len(sets[i] | sets[j])
            assert common / whole == pytest.approx(jaccard(texts[i], texts[j]))


@pytest.mark.parametrize("text", ["", "  ", "!!!", "😀", "a", "ka ba"])
def test_texts_of_few_words_are_sets_of_one(text):
    assert shingle(read_list([text, "x y z"])).offsets.tolist() == [0, 1, 2]


def test_case_punctuation_and_composition_do_not_count(tmp_path):
    pairs, _ = search(tmp_path, ["Ɛyɛ me dɛ sɛ wo bae café", "ɛyɛ, ME dɛ -- sɛ wo bae cafe\u0301!"])
    assert pairs == {(0, 1)}


def test_scripts_without_spaces_are_cut_into_letters(tmp_path):
    thai = "สวัสดีครับผมชื่อสมชายยินดีที่ได้รู้จักคุณมากครับวันนี้อากาศดี"
    pairs, _ = search(tmp_path, [thai, thai + "ๆ", "ภาษาไทยอีกประโยคหนึ่งซึ่งไม่เหมือนกันเลย"], parts=1)
    assert pairs == {(0, 1)}


LONG = "a trader buys {} bags of rice at the market and sells each of them for {} cedis to her neighbours in town how much does she earn"


def test_different_numbers_make_different_texts(tmp_path):
    more = LONG + " and what would she earn if half of them were lost on the way"
    texts = [more.format(12, 40), more.format(13, 40), more.format(12, 40) + " then"]
    assert jaccard(texts[0], texts[1]) >= 0.8
    assert search(tmp_path, texts)[0] == {(0, 2)}


def test_numbers_may_be_words_like_others(tmp_path):
    texts = [LONG.format(12, 40), LONG.format(13, 40)]
    found = find_similar(
        [texts], read_list, threshold=0.6, workers=Inline(), scratch=tmp_path, numbers_matter=False
    )
    assert found.similarity.tolist() == [pytest.approx(jaccard(*texts))]


def test_in_long_texts_numbers_do_not_matter(tmp_path):
    body = " ".join(planted(3)[::2])
    body = " ".join((body.split() * 4)[:200])
    pairs, _ = search(tmp_path, [f"printed 2021 {body}", f"printed 2022 {body}"])
    assert pairs == {(0, 1)}


def test_different_salts_have_nothing_in_common(tmp_path):
    def read(salts):
        return Texts(pa.array(["good morning to you all"] * 3), np.array(salts, np.uint64))

    found = find_similar([[1, 2, 1]], read, threshold=0.8, workers=Inline(), scratch=tmp_path)
    assert list(zip(found.left.tolist(), found.right.tolist(), strict=True)) == [(0, 2)]


def test_many_copies_of_one_text_are_linked_without_pairing_all(tmp_path):
    pairs, found = search(tmp_path, ["the same words again and again"] * 500, parts=1)
    assert len(pairs) == 499
    assert sorted(doubles(found)) == list(range(1, 500))


@pytest.mark.parametrize("size", [2, 5, 32, 33, 100])
def test_members_of_a_bucket_meet(size):
    rows = np.arange(size, dtype=np.int64)
    codes = candidate_pairs(np.full(size, 7, np.uint64), rows, 1000)
    pairs = {(int(c) // 1000, int(c) % 1000) for c in codes}
    if size <= 32:
        assert pairs == set(combinations(range(size), 2))
    assert {b for a, b in pairs if a == 0} == set(range(1, size))
    assert all(a < b for a, b in pairs)


def test_the_first_of_its_kind_stays_and_resemblance_is_not_handed_on():
    # 0 ~ 1 ~ 2, but 2 does not resemble 0: 1 goes, 2 stays.
    chain = Similar(np.array([0, 1]), np.array([1, 2]), np.array([0.9, 0.9]))
    assert doubles(chain) == {1: 0}


def test_long_texts_are_compared_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("core.data.near.similar._BLOCK", 100)
    texts = planted(30)
    pairs, _ = search(tmp_path, texts)
    assert pairs == {
        pair for pair in combinations(range(len(texts)), 2) if jaccard(*(texts[i] for i in pair)) >= 0.8
    }


def test_no_texts_and_one_text(tmp_path):
    assert search(tmp_path, ["only one"], parts=1)[0] == set()
    found = find_similar([], read_list, threshold=0.8, workers=Inline(), scratch=tmp_path)
    assert len(found.left) == 0
