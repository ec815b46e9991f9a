import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.data.batches import (
    collate,
    collate_packed,
    example_order,
    pack,
    pack_bins,
    step_batches,
    steps_per_epoch,
    truncate,
)
from core.data.chat import IGNORE_INDEX, Encoded

X = IGNORE_INDEX


def test_collate_pads_on_the_right():
    batch = collate([Encoded([5, 6, 7], [X, 6, 7]), Encoded([8], [X])], pad_id=9)
    assert batch.input_ids.tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch.labels.tolist() == [[X, 6, 7], [X, X, X]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert all(tensor.dtype == torch.int64 for tensor in batch[:3])
    assert batch.position_ids is None
    with pytest.raises(ValueError, match="at least one"):
        collate([], 0)


def test_truncate_keeps_the_head_and_counts():
    short = Encoded([1, 2], [X, 2])
    cut = Encoded([1, 2, 3, 4, 5], [X, X, 3, 4, 5])
    lost = Encoded([1, 2, 3, 4, 5], [X, X, X, X, 5])
    never = Encoded([1, 2], [X, X])
    result = truncate([short, cut, lost, never], 4)
    assert result.examples == [short, Encoded([1, 2, 3, 4], [X, X, 3, 4])]
    assert (result.shortened, result.dropped) == (1, 2)
    exact = truncate([cut], 5)
    assert (exact.examples, exact.shortened, exact.dropped) == ([cut], 0, 0)


def test_a_label_on_the_first_token_alone_trains_nothing():
    assert truncate([Encoded([1, 2], [1, X])], 8).dropped == 1


def test_order_is_a_permutation_fixed_by_epoch_and_seed():
    order = example_order(100, 0, 7)
    assert sorted(order) == list(range(100))
    assert order == example_order(100, 0, 7)
    assert order not in (example_order(100, 1, 7), example_order(100, 0, 8), list(range(100)))


@pytest.mark.parametrize(
    ("n", "micro", "accumulation"), [(10, 2, 2), (8, 2, 2), (7, 3, 1), (1, 4, 4), (23, 4, 3), (5, 1, 8)]
)
def test_every_epoch_sees_every_example_once(n, micro, accumulation):
    per_epoch = steps_per_epoch(n, micro, accumulation)
    steps = list(itertools.islice(step_batches(n, micro, accumulation, 3), 3 * per_epoch))
    for epoch in range(3):
        part = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert [i for step in part for batch in step for i in batch] == example_order(n, epoch, 3)
        assert all(sum(map(len, step)) == micro * accumulation for step in part[:-1])
        assert sum(map(len, part[-1])) == n - micro * accumulation * (per_epoch - 1)
        assert all(0 < len(batch) <= micro for step in part for batch in step)
        assert all(len(step) <= accumulation for step in part)


@pytest.mark.parametrize("start", [0, 1, 2, 3, 4, 5, 11])
def test_resuming_continues_exactly(start):
    whole = list(itertools.islice(step_batches(10, 2, 2, 3), 20))
    resumed = list(itertools.islice(step_batches(10, 2, 2, 3, start_step=start), 20 - start))
    assert resumed == whole[start:]


def test_no_examples_is_an_error():
    with pytest.raises(ValueError, match="no examples"):
        next(step_batches(0, 1, 1, 0))


def test_pack_joins_documents_with_eos_into_full_rows():
    assert list(pack([[1, 2, 3], [4], [], [5, 6, 7, 8, 9]], 4, eos_id=0)) == [
        [1, 2, 3, 0],
        [4, 0, 0, 5],
        [6, 7, 8, 9],
    ]
    assert list(pack([list(range(1, 12))], 4, eos_id=0)) == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 0]]
    assert list(pack([[1, 2]], 4, eos_id=0)) == []


def test_packed_rows_restart_positions_and_never_train_across_a_border():
    first, second, single = Encoded([5, 6, 7], [5, 6, 7]), Encoded([8, 9], [X, 9]), Encoded([4], [4])
    batch = collate_packed([[first, single, second], [second]], pad_id=1)
    assert batch.input_ids.tolist() == [[5, 6, 7, 4, 8, 9], [8, 9, 1, 1, 1, 1]]
    assert batch.labels.tolist() == [[X, 6, 7, X, X, 9], [X, 9, X, X, X, X]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0, 1], [0, 1, 0, 1, 2, 3]]
    assert batch.attention_mask.tolist() == [[1] * 6, [1, 1, 0, 0, 0, 0]]
    with pytest.raises(ValueError, match="at least one"):
        collate_packed([], 0)


def test_the_best_fit_is_taken_and_the_longest_comes_first():
    # 7 and 6 open a row each; 3 fits both and leaves the first full, 4 then the second.
    assert sorted(map(sorted, pack_bins([3, 6, 7, 4], 10, 0))) == [[0, 2], [1, 3]]
    assert sorted(len(row) for row in pack_bins([10, 10, 1], 10, 0)) == [1, 1, 1]
    assert pack_bins([], 10, 0) == []
    with pytest.raises(ValueError, match="11 tokens does not fit a row of 10"):
        pack_bins([3, 11], 10, 0)


def slow_best_fit(lengths: list[int], capacity: int) -> int:
    """Count the rows of best fit decreasing, written as it is defined."""
    rooms: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [n for n, room in enumerate(rooms) if room >= length]
        if fitting:
            best = min(fitting, key=lambda n: rooms[n])
            rooms[best] -= length
        else:
            rooms.append(capacity - length)
    return len(rooms)


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 80), st.integers(0, 5))
def test_every_document_is_in_one_row_and_no_row_is_too_long(lengths, capacity, seed):
    rows = pack_bins(lengths, capacity, seed)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    assert all(sum(lengths[n] for n in row) <= capacity for row in rows)
    # How many there are does not depend on the seed, so neither does the number of steps.
    assert len(rows) == slow_best_fit(lengths, capacity)
    assert len(rows) <= math.ceil(11 / 9 * math.ceil(sum(lengths) / capacity)) + 1
    assert rows == pack_bins(lengths, capacity, seed)


def test_equally_long_documents_meet_others_under_another_seed():
    packings = {str(pack_bins([5] * 20, 10, seed)) for seed in range(4)}
    assert len(packings) == 4
