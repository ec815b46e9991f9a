"""What waits for the backward pass: on the GPU, in pinned memory, and given back."""

import gc
import random
import warnings

import pytest
import torch

from core.models.fused.costs import HOST_SHARE
from core.models.fused.policy import Place
from core.models.fused.store import LOCKED_SHARE, HostMemory, PinningFailed, Store
from tests.core.models.fused.streams import MAIN, Ashore, Stream
from tests.core.models.fused.tiny import POLICIES, error, gradients, ids, keep, learn, pair

CPU = torch.device("cpu")
HOSTED = [label for label, policy in POLICIES.items() if Place.HOST in policy]


def yes(buffer: torch.Tensor) -> bool:
    return True


# Buffers


def test_a_buffer_that_was_given_back_is_used_again():
    host = HostMemory(yes)
    first = host.take(64)
    other = host.take(64)
    assert first.data_ptr() != other.data_ptr()
    host.give(first)
    assert host.take(64).data_ptr() == first.data_ptr()
    host.give(other)
    assert host.take(32).data_ptr() == other.data_ptr()  # up to twice as large as needed will do
    assert host.nbytes == 64 + 64


def test_buffers_for_ever_new_sizes_do_not_add_up():
    host, longest = HostMemory(yes), 0
    for step in range(60):
        sizes = [997 * (1 + (7 * step) % 31), 1499 * (1 + (11 * step) % 31)]
        held = [host.take(size) for size in sizes]
        assert all(buffer.numel() >= size for buffer, size in zip(held, sizes, strict=True))
        longest = max(longest, *(buffer.numel() for buffer in held))
        for buffer in held:
            host.give(buffer)
    assert host.nbytes <= 4 * longest
    assert host.nbytes == sum(size * len(buffers) for size, buffers in host.free.items())


def test_memory_that_cannot_be_locked_is_an_error_and_is_not_counted():
    host = HostMemory(lambda buffer: buffer.numel() < 100)
    with pytest.raises(PinningFailed, match="could not be locked"):
        host.take(128)
    assert (host.nbytes, host.free) == (0, {})
    assert host.limit == 0
    with pytest.raises(PinningFailed):  # and is not tried again and again
        host.take(64)


def test_memory_that_does_not_exist_is_the_same_error():
    with pytest.raises(PinningFailed):
        HostMemory(yes).take(1 << 60)


class Machine:
    """Main memory that several processes lock parts of."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.hosts: list[HostMemory] = []

    def free(self) -> int:
        return self.size - sum(each.nbytes for each in self.hosts)

    def host(self) -> HostMemory:
        self.hosts.append(HostMemory(yes, self.free))
        return self.hosts[-1]


def fill(*hosts: HostMemory, piece: int = 10) -> None:
    """Let each lock one piece after another, in turn, until it is refused."""
    open_to = list(hosts)
    while open_to:
        for host in list(open_to):
            try:
                host.take(piece)
            except PinningFailed:
                open_to.remove(host)


def test_one_run_locks_what_it_planned_and_a_little_more():
    machine = Machine(1000)
    host = machine.host()
    fill(host)
    assert HOST_SHARE * 1000 < host.nbytes <= LOCKED_SHARE * 1000
    assert host.limit == host.nbytes


@pytest.mark.parametrize("at_once", [True, False])
def test_runs_that_counted_with_the_same_memory_leave_the_machine_some(at_once: bool):
    machine = Machine(1000)
    hosts = [machine.host() for _ in range(2)]
    for each in [hosts] if at_once else [[host] for host in hosts]:
        fill(*each)
    assert machine.free() >= 0.15 * 1000
    assert all(host.nbytes >= 0.2 * 1000 for host in hosts)


def test_what_may_be_locked_may_take_another_shape_later():
    machine = Machine(1000)
    host = machine.host()
    held = [host.take(100) for _ in range(6)]
    with pytest.raises(PinningFailed, match="could not be locked"):
        host.take(100)
    for buffer in held:
        host.give(buffer)
    assert host.take(40).numel() == 40
    assert host.limit == 600 >= host.nbytes
    kept = {size: len(buffers) for size, buffers in host.free.items()}
    # What cannot fit takes nothing from others.
    with pytest.raises(PinningFailed, match="before"):
        host.take(900)
    assert {size: len(buffers) for size, buffers in host.free.items()} == kept


def test_closing_forgets_the_free_buffers_alone():
    host = HostMemory(yes)
    held, free = host.take(64), host.take(32)
    host.give(free)
    host.close()
    assert (host.nbytes, host.free) == (64, {})
    host.give(held)
    host.close()
    assert host.nbytes == 0


# Tensors


def test_a_kept_tensor_is_taken_once_and_a_small_one_stays():
    store, x = Store(CPU, HostMemory(yes)), torch.ones(3)
    store.keep(0, [("qkv", x, Place.DEVICE), ("residual", x, Place.RECOMPUTE), ("low_o", x, Place.DEVICE)])
    assert store.take(0, "qkv").data_ptr() == x.data_ptr()
    assert store.take(0, "qkv") is None
    assert store.take(0, "residual") is None
    assert store.look(0, "low_o").data_ptr() == x.data_ptr()
    assert store.look(0, "low_o").data_ptr() == x.data_ptr()
    assert store.look(1, "low_o") is None


def test_without_a_gpu_main_memory_is_where_tensors_are_anyway():
    host, x = HostMemory(yes), torch.ones(3)
    store = Store(CPU, host)
    store.keep(0, [("input", x, Place.HOST)])
    store.ask(0, ["input"])
    assert store.take(0, "input").data_ptr() == x.data_ptr()
    assert host.nbytes == 0


def test_a_tensor_comes_back_from_main_memory_as_often_as_it_is_wanted(ashore: type[Ashore]):
    host = HostMemory(yes)
    store = ashore(CPU, host)
    x = torch.randn(5, 6)
    expected = x.clone()
    store.keep(0, [("input", x[:, :4], Place.HOST), ("qkv", x, Place.DEVICE)])
    for layer in (1, 2):
        store.keep(layer, [])
    x.zero_()
    for _ in range(2):
        found = store.take(0, "input")
        assert found is not None
        assert torch.equal(found, expected[:, :4])
    store.ask(0, ["input", "qkv", "nothing"])
    assert list(store.coming) == [(0, "input")]
    assert host.nbytes == 5 * 4 * 4


def test_buffers_go_back_when_the_pass_is_forgotten(ashore: type[Ashore]):
    host = HostMemory(yes)
    store = ashore(CPU, host)
    x = torch.ones(4)
    store.keep(0, [("input", x, Place.HOST)])
    assert not host.free
    outward, _ = host.streams(CPU)
    assert outward.queued == 1
    del store
    # A buffer that is still being written to is nobody's to use.
    assert outward.done == 1
    assert [len(each) for each in host.free.values()] == [1]


# Whole passes


@pytest.mark.parametrize("label", HOSTED)
@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_main_memory_changes_no_gradient_however_late_copies_run(
    name: str,
    label: str,
    ashore: type[Ashore],
):
    model = pair(name)
    keep(model.state, POLICIES["full"])
    expected = learn(model.ours)[1]
    keep(model.state, POLICIES[label])
    model.state.host.lock = yes
    for _ in range(2):
        assert error(learn(model.ours)[1], expected) < 1e-12
    assert model.state.host_bytes > 0


def test_main_memory_stands_a_graph_that_is_walked_twice(ashore: type[Ashore]):
    model = pair("gemma3")
    keep(model.state, POLICIES["full"])
    expected = learn(model.ours)[1]
    keep(model.state, POLICIES["host"])
    model.state.host.lock = yes
    tokens = ids()
    model.ours.zero_grad()
    loss = model.ours(input_ids=tokens, labels=tokens, use_cache=False).loss
    for _ in range(2):
        model.ours.zero_grad()
        loss.backward(retain_graph=True)
        assert error(gradients(model.ours), expected) < 1e-12


def test_the_copying_streams_may_be_as_fast_or_slow_as_they_like(
    ashore: type[Ashore],
    monkeypatch: pytest.MonkeyPatch,
):
    model, chance = pair("qwen3"), random.Random(5)
    keep(model.state, POLICIES["full"])
    expected = learn(model.ours)[1]
    keep(model.state, POLICIES["host"])
    model.state.host.lock = yes
    real = Stream.add

    def sometimes_at_once(self: Stream, work) -> None:
        real(self, work)
        if chance.random() < 0.5:
            self.run(self.queued)

    monkeypatch.setattr(Stream, "add", sometimes_at_once)
    for _ in range(5):
        assert error(learn(model.ours)[1], expected) < 1e-12


def test_five_steps_need_the_memory_of_one_and_leave_nothing(ashore: type[Ashore]):
    model = pair("llama")
    keep(model.state, POLICIES["host"])
    model.state.host.lock = yes
    sizes = []
    gc.disable()
    try:
        for seed in range(5):
            learn(model.ours, ids(seed=seed))
            sizes.append(model.state.host_bytes)
            assert all(store() is None for store in ashore.made)
    finally:
        gc.enable()
    assert len(ashore.made) == 5
    assert len(set(sizes)) == 1
    assert sum(size * len(each) for size, each in model.state.host.free.items()) == sizes[0]


def test_a_pass_without_gradients_keeps_nothing(ashore: type[Ashore]):
    model = pair("gemma3")
    keep(model.state, POLICIES["host"])
    model.state.host.lock = yes
    held = []
    real = ashore.keep
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ashore, "keep", lambda self, *args: held.append(args) or real(self, *args))
        with torch.no_grad():
            model.ours(input_ids=ids(), use_cache=False)
    assert held == []
    assert model.state.host_bytes == 0


def test_where_nothing_can_be_locked_tensors_stay_and_it_is_said(ashore: type[Ashore]):
    model = pair("qwen3")
    keep(model.state, POLICIES["full"])
    expected = learn(model.ours)[1]
    keep(model.state, POLICIES["host"])
    model.state.host.lock = lambda buffer: False
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        assert error(learn(model.ours)[1], expected) < 1e-12
    assert said
    assert all("activations stay on the GPU" in str(each.message) for each in said)
    assert (model.state.host_bytes, model.state.host.free) == (0, {})


def test_where_locking_fails_half_way_the_rest_still_goes_out(ashore: type[Ashore]):
    model = pair("qwen3")
    keep(model.state, POLICIES["full"])
    expected = learn(model.ours)[1]
    keep(model.state, POLICIES["host"])
    left = [True] * 5
    model.state.host.lock = lambda buffer: bool(left) and left.pop()
    with pytest.warns(RuntimeWarning, match="activations stay on the GPU"):
        assert error(learn(model.ours)[1], expected) < 1e-12
    assert model.state.host_bytes > 0
    assert MAIN.work == []


def test_training_looking_and_training_again_is_training_alone(ashore: type[Ashore]):
    model = pair("mistral")
    keep(model.state, POLICIES["host"])
    model.state.host.lock = yes
    expected = learn(model.ours)[1]
    with torch.inference_mode():
        model.ours.eval()(input_ids=ids(1, 30), use_cache=False)
    model.ours.train()
    assert error(learn(model.ours)[1], expected) == 0
