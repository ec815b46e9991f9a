import itertools

import pytest
import torch

from core.data.batches import collate, example_order, pack, step_batches, steps_per_epoch, truncate
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
