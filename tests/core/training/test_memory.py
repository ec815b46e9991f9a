"""Memory that runs out: smaller micro-batches, the same training."""

from pathlib import Path

import pytest
import torch

from core.data.chat import IGNORE_INDEX, Encoded
from core.errors import ResourceError
from core.models.adapters import attach
from core.models.config import LoraConfig
from core.models.loading import load_folder
from core.sinks import ListSink
from core.training.config import TrainingConfig
from core.training.memory import MicroBatches, explained, is_out_of_memory, until_it_fits
from core.training.rows import SftInputs
from core.training.sft import finetune

LORA = LoraConfig(r=4, lora_dropout=0.1, use_gradient_checkpointing=False)
NO_DROPOUT = LORA.model_copy(update={"lora_dropout": 0.0})
FAST = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "optim": "adamw_torch",
        "learning_rate": 1e-2, "eval_steps": 3, "save_steps": 2, "warmup_steps": 2, "max_steps": 6}  # fmt: skip
SMALL = {**FAST, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
SAID = (
    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"
)
ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    MemoryError(),
    RuntimeError(SAID),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
]


def inputs() -> SftInputs:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(24):
        ids = torch.randint(6, 400, (5 + number % 4,), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORE_INDEX] * 3 + ids[3:]))
    return SftInputs(rows[:18], rows[18:], pad_id=1)


class Room:
    """Lets a model read at most so many rows at once, and remembers what it read."""

    def __init__(
        self, model, rows: int, *, error: Exception | None = None, late=False, mode=None, first=0
    ) -> None:
        self.rows, self.error, self.mode, self.first = rows, error or MemoryError(), mode, first
        self.seen: list[int] = []
        place = model.get_output_embeddings() if late else model.get_input_embeddings()
        place.register_forward_pre_hook(self.enter)
        self.model = model
        if late:
            model.get_input_embeddings().register_forward_pre_hook(self.count)

    def count(self, module, args) -> None:
        self.latest = args[0].shape[0]

    def enter(self, module, args) -> None:
        rows = getattr(self, "latest", args[0].shape[0])
        self.seen.append(rows)
        in_mode = self.mode is None or self.model.training == self.mode
        # The eight tokens that find out where the head is are one row.
        if rows > self.rows and in_mode and len(self.seen) > self.first:
            raise self.error


def run(base: Path, folder: Path, settings: dict, *, lora=LORA, room=None, data=None, **limits):
    model = attach(load_folder(base), lora)
    if room is not None:
        room = Room(model, room, **limits)
    sink = ListSink()
    tuned = finetune(
        model, data or inputs(), TrainingConfig(**settings), checkpoints=folder, fingerprint="f", sink=sink,
        on_checkpoint=lambda: None, on_start=lambda progress: None,
    )  # fmt: skip
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}, tuned, sink


def same(one: dict, two: dict) -> bool:
    return all(torch.equal(tensor, two[name]) for name, tensor in one.items())


@pytest.fixture(scope="module")
def began_small(base_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Train with the smaller micro-batches from the start."""
    return run(base_folder, tmp_path_factory.mktemp("small"), SMALL)


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "python", "cpu", "older cpu"])
def test_training_that_ran_out_equals_one_that_began_small_bit_for_bit(
    base_folder, tmp_path, error: Exception
):
    small, expected, _ = run(base_folder, tmp_path / "a", SMALL)
    shrunk, tuned, sink = run(base_folder, tmp_path / "b", FAST, room=2, error=error)
    assert same(small, shrunk)
    assert tuned.progress.losses == expected.progress.losses
    assert tuned.progress.eval_losses == expected.progress.eval_losses
    assert (tuned.micro_batch, tuned.accumulation, tuned.progress.shrinks) == (2, 4, 1)
    notes = [(step, metrics) for step, metrics in sink.rows if "shrinks" in metrics]
    assert notes == [(1, {"micro_batch": 2, "accumulation": 4, "shrinks": 1})]


def test_running_out_halfway_through_a_step_leaves_no_half_gradient(base_folder, tmp_path, began_small):
    # After the two looks for the head, the first micro-batch leaves its gradient; the second one fails late.
    small, _, _ = began_small
    shrunk, tuned, _ = run(base_folder, tmp_path / "b", FAST, room=2, late=True, first=3)
    assert tuned.progress.shrinks == 1
    assert same(small, shrunk)


def test_from_the_step_on_where_it_ran_out_the_mathematics_are_the_same(base_folder, tmp_path):
    large, whole, _ = run(base_folder, tmp_path / "a", FAST, lora=NO_DROPOUT)
    shrunk, tuned, sink = run(base_folder, tmp_path / "b", FAST, lora=NO_DROPOUT, room=1, first=5)
    assert [step for step, metrics in sink.rows if "shrinks" in metrics] == [2, 2]
    assert tuned.progress.losses[:1] == whole.progress.losses[:1]
    assert tuned.progress.losses == pytest.approx(whole.progress.losses, abs=1e-6)
    assert all(torch.allclose(tensor, shrunk[name], atol=1e-6) for name, tensor in large.items())


def test_validation_that_runs_out_shrinks_too(base_folder, tmp_path):
    small, expected, _ = run(base_folder, tmp_path / "a", SMALL, lora=NO_DROPOUT)
    shrunk, tuned, sink = run(base_folder, tmp_path / "b", FAST, lora=NO_DROPOUT, room=2, mode=False)
    assert [step for step, metrics in sink.rows if "shrinks" in metrics] == [3]
    assert [loss for _, loss in tuned.progress.eval_losses] == pytest.approx(
        [loss for _, loss in expected.progress.eval_losses], abs=1e-6
    )
    assert all(torch.allclose(tensor, shrunk[name], atol=1e-6) for name, tensor in small.items())


def test_packed_rows_shrink_as_well(base_folder, tmp_path):
    data = inputs()._replace(window=20)
    packing = {**FAST, "packing": True, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    one = {**packing, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    small, _, _ = run(base_folder, tmp_path / "a", one, data=data)
    shrunk, tuned, _ = run(base_folder, tmp_path / "b", packing, data=data, room=1)
    assert tuned.progress.shrinks == 1
    assert same(small, shrunk)


def test_a_resumed_run_keeps_the_smaller_size(base_folder, tmp_path):
    begun = {**FAST, "max_steps": 6}
    whole, expected, _ = run(base_folder, tmp_path / "a", begun, room=2)

    class Killed(Exception):
        pass

    def die() -> None:
        raise Killed

    model = attach(load_folder(base_folder), LORA)
    Room(model, 2)
    with pytest.raises(Killed):
        finetune(
            model, inputs(), TrainingConfig(**begun), checkpoints=tmp_path / "b", fingerprint="f",
            sink=ListSink(), on_checkpoint=die, on_start=lambda progress: None,
        )  # fmt: skip
    resumed, tuned, sink = run(base_folder, tmp_path / "b", begun, room=2)
    assert not [metrics for _, metrics in sink.rows if "shrinks" in metrics]
    assert (tuned.progress, tuned.micro_batch) == (expected.progress, 2)
    assert same(whole, resumed)


@pytest.mark.parametrize("change", [{}, {"shrink_on_oom": False}])
def test_a_single_row_that_does_not_fit_ends_with_advice(base_folder, tmp_path, change: dict):
    with pytest.raises(ResourceError) as caught:
        run(base_folder, tmp_path, {**FAST, **change}, room=0)
    assert "memory ran out during training" in caught.value.what
    assert "max_seq_length" in caught.value.fix
    assert "gradient_accumulation_steps" in caught.value.fix


def test_shrinking_is_not_part_of_the_key_for_it_changes_no_result():
    assert "shrink_on_oom" in TrainingConfig.not_in_fingerprint


@pytest.mark.parametrize(
    ("size", "accumulation", "sizes"),
    [(8, 2, [(4, 4), (2, 8), (1, 16)]), (5, 1, [(2, 3), (1, 5)]), (3, 4, [(1, 12)])],
)
def test_sizes_halve_down_to_one_and_a_step_keeps_its_rows(size, accumulation, sizes):
    micro = MicroBatches(size, accumulation, may_shrink=True)
    rows = list(range(size * accumulation))
    for wanted in sizes:
        micro.give_way()
        assert (micro.size, micro.accumulation) == wanted
        parts = micro.split(rows)
        assert [row for part in parts for row in part] == rows
        assert len(parts) == micro.accumulation
        assert MicroBatches(size, accumulation, may_shrink=True, shrinks=micro.shrinks).size == micro.size
    with pytest.raises(ResourceError):
        micro.give_way()


def test_other_errors_pass_through_and_are_not_tried_again():
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator: not enough memory"))
    calls = []

    def fails():
        calls.append(1)
        raise RuntimeError("shape")

    with pytest.raises(RuntimeError, match="shape"), explained():
        until_it_fits(fails, lambda: None)
    assert calls == [1]


def test_the_tensors_of_a_failed_attempt_are_free_before_the_next_one():
    import gc
    import weakref

    held: list[weakref.ref] = []

    def attempt() -> bool:
        if held:
            assert held[0]() is None
            return True
        big = torch.ones(1000)
        held.append(weakref.ref(big))
        raise MemoryError

    gc.disable()
    try:
        assert until_it_fits(attempt, lambda: None)
    finally:
        gc.enable()
