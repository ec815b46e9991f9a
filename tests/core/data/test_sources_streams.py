import json
from collections import Counter
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from core.data.config import SourceConfig
from core.data.sources import open_sources
from core.data.sources.streams import Texts, TextStream, draws
from core.data.streams import StreamDataset


class Counting:
    """A source of so many items, each told by its source and number."""

    def __init__(self, name, count):
        self.name, self.count = name, count

    def __call__(self):
        return ((self.name, number) for number in range(self.count))


class Endless:
    def __init__(self, name):
        self.name = name

    def __call__(self):
        while True:
            yield self.name


@given(st.lists(st.integers(0, 40), max_size=5), st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_without_weights_every_item_comes_exactly_once_over_all_readers(sizes, readers):
    stream = TextStream([Counting(name, size) for name, size in enumerate(sizes)])
    wanted = Counter((name, number) for name, size in enumerate(sizes) for number in range(size))
    assert Counter(stream) == wanted
    assert Counter(item for reader in range(readers) for item in stream.shard(reader, readers)) == wanted


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_the_mix_is_within_two_percent_of_the_weights(weights, seed):
    stream = TextStream([Endless(name) for name in range(len(weights))], weights, seed=seed)
    found = Counter(islice(stream, 2560))
    for name, weight in enumerate(weights):
        assert abs(found[name] / 2560 - weight / sum(weights)) < 0.02


@given(st.lists(st.floats(0.01, 100), min_size=2, max_size=4), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_blocks_err_by_one_draw_at_most(weights, seed):
    plan = draws(weights, seed)
    for _ in range(3):
        found = Counter(islice(plan, 256))
        assert all(abs(found[n] - 256 * w / sum(weights)) < 1 + 1e-6 for n, w in enumerate(weights))


def test_a_rare_source_gets_its_share_in_the_long_run():
    found = Counter(islice(draws([1, 9999], seed=3), 400_000))
    assert 15 <= found[0] <= 70  # 40 expected


def test_the_order_is_random_but_repeats_with_the_seed():
    def first(seed):
        return list(islice(TextStream([Endless("a"), Endless("b")], [1, 1], seed=seed), 64))

    assert first(1) == first(1) != first(2)
    assert any(left == right for left, right in zip(first(1), first(1)[1:], strict=False))


@given(st.lists(st.integers(0, 60), min_size=1, max_size=4), st.integers(1, 4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_weighted_mix_repeats_nothing_and_ends_with_the_first_source(sizes, readers, seed):
    sources = [Counting(name, size) for name, size in enumerate(sizes)]
    stream = TextStream(sources, [number + 1.0 for number in range(len(sizes))], seed=seed)
    found = list(stream)
    assert len(found) == len(set(found))
    assert any(sum(name == each for name, _ in found) == size for each, size in enumerate(sizes))
    assert Counter(item for reader in range(readers) for item in stream.shard(reader, readers)) == Counter(
        found
    )


def test_repeating_starts_small_sources_again():
    stream = TextStream([Counting("a", 3), Counting("b", 10**9)], [1, 1], seed=0, repeat=True)
    found = Counter(islice(stream, 600))
    assert all(abs(found["a", number] - 100) <= 3 for number in range(3))
    assert list(TextStream([Counting("a", 0)], [1], repeat=True)) == []


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0], [1.0, -1.0], []])
def test_weights_must_fit(weights):
    with pytest.raises(ValueError, match="one positive weight"):
        TextStream([Endless(1), Endless(2)], weights)


def test_repeating_without_weights_is_refused():
    with pytest.raises(ValueError, match="needs weights"):
        TextStream([Endless(1)], repeat=True)


@pytest.fixture
def texts(tmp_path):
    for name, field in (("a", "text"), ("b", "content")):
        rows = [json.dumps({field: f"{name}{n}", "id": n}) for n in range(300)]
        (tmp_path / f"{name}.jsonl").write_text(
            "\n".join([*rows, "broken", '{"id": 1}', '"x"', '{"text": 3}'])
        )
    (tmp_path / "c.jsonl").write_bytes(b'{"text": "c\xff"}\n{"text": "c0", "other": "d0"}\n')
    sources = [SourceConfig(path=f"{name}.jsonl") for name in "abc"]
    return [Texts(source) for source in open_sources(sources, tmp_path, cache=tmp_path)]


WANTED = [f"{name}{n}" for name in "ab" for n in range(300)] + ["c0"]


def test_texts_are_found_by_their_field(texts, tmp_path):
    assert sorted(TextStream(texts)) == sorted(WANTED)
    (source,) = open_sources([SourceConfig(path="c.jsonl")], tmp_path, cache=tmp_path)
    assert list(Texts(source, "other")()) == ["d0"]


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_share_a_stream_without_a_length(texts, workers):
    dataset = StreamDataset(TextStream(texts))
    with pytest.raises(TypeError):
        len(dataset)
    loader = DataLoader(dataset, batch_size=16, num_workers=workers)
    assert sorted(text for batch in loader for text in batch) == sorted(WANTED)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_keep_the_mix(texts, workers):
    dataset = StreamDataset(TextStream(texts[:2], [2, 1], seed=5))
    found = [text for batch in DataLoader(dataset, batch_size=8, num_workers=workers) for text in batch]
    assert len(found) == len(set(found)) >= 449
    assert abs(sum(text[0] == "a" for text in found) / len(found) - 2 / 3) < 0.02


def test_ranks_and_workers_together_see_each_text_once(texts):
    ranks = [StreamDataset(TextStream(texts), rank=rank, ranks=3) for rank in range(3)]
    found = [list(DataLoader(rank, batch_size=None, num_workers=2)) for rank in ranks]
    assert sorted(text for part in found for text in part) == sorted(WANTED)
