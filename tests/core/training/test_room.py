"""Fused layers choose the micro-batch, and keep less before it is halved; no choice changes what is trained."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from core.data.chat import IGNORE_INDEX, Encoded
from core.errors import ResourceError
from core.models.adapters import attach
from core.models.config import LoraConfig, ModelConfig
from core.models.frameworks import FrameworkNotice
from core.models.fused.state import FusedState, fused_state
from core.models.loading import load_model
from core.sinks import ListSink
from core.training.config import TrainingConfig
from core.training.memory import MicroBatches
from core.training.room import make_room
from core.training.rows import Rows, SftInputs
from core.training.sft import Tuned, finetune
from core.training.status import TrainingStatus

FAST = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "optim": "adamw_torch", "save_steps": 9,
        "learning_rate": 1e-2, "eval_steps": 3, "warmup_steps": 1, "max_steps": 3}  # fmt: skip
LORA = LoraConfig(r=4)


def inputs() -> SftInputs:
    generator = torch.Generator().manual_seed(3)
    rows = []
    for number in range(20):
        ids = torch.randint(6, 400, (5 + number % 4,), generator=generator).tolist()
        rows.append(Encoded(ids, [IGNORE_INDEX] * 3 + ids[3:]))
    return SftInputs(rows[:16], rows[16:], pad_id=1)


def model_of(base: Path, framework: str = "fused"):
    settings = ModelConfig(name=str(base), framework=framework, load_in_4bit=False, dtype="float32")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FrameworkNotice)
        return attach(load_model(settings, trainable=True), LORA)


class Planner:
    """Answers for the state of a fused model, whose own answers need a GPU."""

    def __init__(self, state: FusedState, *, size: int = 2, ways: int = 0) -> None:
        self.asked: list[tuple[int, int, int]] = []
        self.ways, self.size, self.given = ways, size, 0
        state.best_micro_batch, state.give_way = self.best, self.give

    def best(self, rows_per_step: int, window: int, wanted: int) -> int:
        self.asked.append((rows_per_step, window, wanted))
        return self.size

    def give(self) -> bool:
        self.given += 1
        return self.given <= self.ways


def run(model, folder: Path, **settings) -> tuple[dict[str, Tensor], Tuned, ListSink]:
    sink = ListSink()
    tuned = finetune(
        model, inputs(), TrainingConfig(**{**FAST, **settings}), checkpoints=folder, fingerprint="f", sink=sink,
        on_checkpoint=lambda: None, on_start=lambda progress: None,
    )  # fmt: skip
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}, tuned, sink


def rooms(sink: ListSink) -> list[tuple[int, dict[str, float]]]:
    """Return what was said of memory, by step."""
    return [(step, row) for step, row in sink.rows if {"micro_batch", "reliefs"} & set(row)]


def out_of_memory_while(model, is_too_much) -> None:
    def look(module, args) -> None:
        if is_too_much(args[0]):
            raise torch.OutOfMemoryError("CUDA out of memory.")

    model.get_input_embeddings().register_forward_pre_hook(look)


# The size


def test_other_engines_keep_the_configured_size(base_folder: Path):
    config = TrainingConfig(**FAST)
    micro = make_room(model_of(base_folder, "hf"), config, Rows(inputs(), config))
    assert (micro.size, micro.accumulation, micro.per_step, micro.relief) == (2, 4, 8, None)


def test_without_a_gpu_fused_keeps_the_configured_size_too(base_folder: Path):
    config = TrainingConfig(**FAST)
    assert make_room(model_of(base_folder), config, Rows(inputs(), config)).size == 2


def test_auto_asks_the_planner_and_tells_what_it_chose(base_folder: Path, tmp_path: Path):
    expected, _, told = run(model_of(base_folder), tmp_path / "a", per_device_train_batch_size=8,
                            gradient_accumulation_steps=1)  # fmt: skip
    assert rooms(told) == []
    model = model_of(base_folder)
    planner = Planner(fused_state(model), size=8)
    found, tuned, sink = run(model, tmp_path / "b")
    assert planner.asked == [(8, 8, 2)]
    assert (tuned.micro_batch, tuned.accumulation, tuned.progress.shrinks) == (8, 1, 0)
    assert rooms(sink) == [(0, {"micro_batch": 8, "accumulation": 1})]
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_the_micro_batch_changes_nothing_but_the_order_of_sums(base_folder: Path, tmp_path: Path):
    results = []
    for size in (1, 2, 4):
        model = model_of(base_folder)
        Planner(fused_state(model), size=size)
        results.append(run(model, tmp_path / str(size)))
    first, tuned, _ = results[0]
    for tensors, other, _ in results[1:]:
        assert other.progress.losses == pytest.approx(tuned.progress.losses, abs=1e-5)
        assert all(torch.allclose(tensor, tensors[name], atol=1e-4) for name, tensor in first.items())


@pytest.mark.parametrize(("gib", "expected"), [(0, 0), (2.5, 5 * 2**29)])
def test_a_number_is_the_budget_and_leaves_the_size_alone(base_folder: Path, gib: float, expected: int):
    model, config = model_of(base_folder), TrainingConfig(**FAST, activation_budget=gib)
    planner = Planner(fused_state(model), size=8)
    assert make_room(model, config, Rows(inputs(), config)).size == 2
    assert planner.asked == []
    assert fused_state(model).activation_bytes == expected


def test_auto_leaves_the_budget_to_the_planner(base_folder: Path):
    model, config = model_of(base_folder), TrainingConfig(**FAST)
    make_room(model, config, Rows(inputs(), config))
    assert fused_state(model).activation_bytes is None


@pytest.mark.parametrize(
    ("packing", "window", "longest"), [(False, None, 8), (True, None, 8), (True, 13, 13)]
)
def test_the_longest_row_is_that_of_what_is_trained_on(packing: bool, window: int | None, longest: int):
    data = inputs()._replace(window=window, val=[Encoded([7] * 8, [7] * 8)])
    rows = Rows(data, TrainingConfig(packing=packing))
    assert rows.longest == longest == max(rows.batch([n]).input_ids.shape[1] for n in range(len(rows)))
    unpacked = inputs()._replace(val=[Encoded([7] * 50, [7] * 50)])
    assert Rows(unpacked, TrainingConfig()).longest == 8


# When memory runs out


def test_less_is_kept_before_the_micro_batch_is_halved(base_folder: Path, tmp_path: Path):
    expected, _, _ = run(model_of(base_folder), tmp_path / "a")
    model, passes = model_of(base_folder), []
    Planner(fused_state(model), ways=3)

    def halfway(ids: Tensor) -> bool:
        """The second micro-batch of a step runs out, twice: by then there is half a gradient."""
        if model.training:
            passes.append(len(ids))
        return model.training and len(passes) in (2, 4)

    out_of_memory_while(model, halfway)
    found, tuned, sink = run(model, tmp_path / "b")
    assert rooms(sink) == [(1, {"reliefs": 1}), (1, {"reliefs": 2})]
    assert (tuned.micro_batch, tuned.progress.shrinks) == (2, 0)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def test_the_micro_batch_is_halved_when_nothing_more_can_be_given_up(base_folder: Path, tmp_path: Path):
    model = model_of(base_folder)
    planner = Planner(fused_state(model), ways=1)
    out_of_memory_while(model, lambda ids: model.training and len(ids) > 1)
    _, tuned, sink = run(model, tmp_path)
    assert planner.given == 2
    assert rooms(sink) == [(1, {"reliefs": 1}), (1, {"micro_batch": 1, "accumulation": 8, "shrinks": 1})]
    assert (tuned.micro_batch, tuned.progress.shrinks) == (1, 1)


def test_a_chosen_size_is_halved_as_a_configured_one_and_again_when_resumed(
    base_folder: Path, tmp_path: Path
):
    model = model_of(base_folder)
    Planner(fused_state(model), size=8)
    out_of_memory_while(model, lambda ids: model.training and len(ids) > 4)
    _, tuned, _ = run(model, tmp_path, max_steps=2)
    assert (tuned.micro_batch, tuned.accumulation, tuned.progress.shrinks) == (4, 2, 1)
    config = TrainingConfig(**FAST)
    again = model_of(base_folder)
    Planner(fused_state(again), size=8)
    assert make_room(again, config, Rows(inputs(), config), tuned.progress.shrinks).size == 4


def test_looking_keeps_nothing_so_there_is_nothing_to_give_up(base_folder: Path, tmp_path: Path):
    model = model_of(base_folder)
    planner = Planner(fused_state(model), ways=9)
    out_of_memory_while(model, lambda ids: not model.training and len(ids) > 1)
    _, tuned, _ = run(model, tmp_path)
    assert planner.given == 0
    assert tuned.progress.shrinks == 1


def test_giving_up_is_allowed_where_shrinking_is_not():
    answers = [True, False]
    micro = MicroBatches(4, 2, may_shrink=False, relief=lambda: answers.pop(0))
    assert micro.give_way() == {"reliefs": 1}
    assert micro.size == 4
    with pytest.raises(ResourceError, match="memory ran out"):
        micro.give_way()


def test_the_status_file_tells_both(tmp_path: Path):
    status = TrainingStatus(tmp_path / "status.json", total_steps=3, total_epochs=1)
    status.log(0, {"micro_batch": 8, "accumulation": 1})
    status.log(1, {"reliefs": 2})
    held = {key: status.content[key] for key in ("step", "micro_batch", "accumulation", "shrinks", "reliefs")}
    assert held == {"step": 0, "micro_batch": 8, "accumulation": 1, "shrinks": 0, "reliefs": 2}


# The setting


@pytest.mark.parametrize("value", ["auto", 0, 3, 2.5])
def test_a_budget_is_auto_or_gib(value: object):
    assert TrainingConfig(activation_budget=value).activation_budget == value
    assert "activation_budget" in TrainingConfig.not_in_fingerprint


@pytest.mark.parametrize("value", [True, False, -1, "all", None, float("nan"), float("inf"), [1]])
def test_what_is_no_budget_is_one_clear_error(value: object):
    with pytest.raises(ValueError, match="must be auto or a number of GiB, 0 or more") as caught:
        TrainingConfig(activation_budget=value)
    assert caught.value.error_count() == 1
