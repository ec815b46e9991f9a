"""A step's loss is read one step late where a device would wait for the question, and nothing else changes by that."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch

from core.errors import TrainingFailed
from core.training import loop
from core.training.loop import Numbers, Plan, Progress, StepLoss, Validation, train
from core.training.memory import MicroBatches
from core.training.meter import Spent

Event = tuple[Any, ...]
ALWAYS = 10_000


class Scene:
    """A quadratic to descend, with everybody who listens; notes what happens in order."""

    def __init__(self, spoilt: int | None = None, what: str = "loss") -> None:
        self.weight = torch.nn.Parameter(torch.tensor([4.0, -2.0]))
        self.optimizer = torch.optim.SGD([self.weight], lr=0.1)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.events: list[Event] = []
        self.spoilt, self.what, self.number = spoilt, what, 0
        self.optimizer.register_step_post_hook(lambda *_: self.events.append(("update",)))

    def step(self, items: Sequence[object]) -> StepLoss:
        self.number += 1
        self.events.append(("gradient", self.number))
        loss = self.weight.square().sum()
        if self.number == self.spoilt:
            loss = loss * float("nan") if self.what == "loss" else loss + 0 * self.weight.sum().sqrt().sqrt()
        loss.backward()
        return StepLoss(loss.detach(), 3, 5)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        kept = {name: value for name, value in metrics.items() if name != "tokens_per_second"}
        self.events.append(("log", step, kept))

    def save(self, progress: Progress, spent: Spent) -> None:
        self.events.append(("save", progress.step, progress.losses, spent.tokens))
        self.spent = spent

    def look(self) -> float:
        self.events.append(("look",))
        return float(self.weight.detach().square().sum())

    def train(self, steps: int = 5, batches: int | None = None, scaler: Any = None, **plan: Any) -> Progress:
        settings = {"logging_steps": 1, "eval_steps": ALWAYS, "save_steps": ALWAYS} | plan
        return train(
            self.step, [[()]] * (batches or steps), self.optimizer, self.scheduler,
            Plan(total_steps=steps, steps_per_epoch=2, max_grad_norm=1.0, seed=0, **settings),
            start=Progress(0, 0, (), ()), sink=self, checkpointer=self, validation=Validation(self.look), scaler=scaler,
        )  # fmt: skip

    def kinds(self) -> list[Any]:
        return [event[:2] for event in self.events if event[0] in ("gradient", "log", "save", "look")]


@pytest.fixture(params=[False, True], ids=["at once", "late"])
def lags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    monkeypatch.setattr(loop, "may_lag", lambda _: request.param)
    yield request.param


PLANS: list[dict[str, Any]] = [
    {}, {"logging_steps": 2}, {"eval_steps": 2}, {"save_steps": 2}, {"steps": 1}, {"batches": 3},
    {"logging_steps": 3, "eval_steps": 2, "save_steps": 3, "steps": 7},
    {"eval_steps": 1, "patience": 1, "threshold": 100.0},
]  # fmt: skip


@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_late_reading_tells_everybody_the_same(plan, monkeypatch):
    found = []
    for late in (False, True):
        monkeypatch.setattr(loop, "may_lag", lambda _, late=late: late)
        scene = Scene()
        progress = scene.train(**plan)
        told = {kind: [e for e in scene.events if e[0] == kind] for kind in ("log", "save", "look", "update")}
        found.append((progress, told, scene.weight.tolist()))
    assert found[0] == found[1]
    progress = found[0][0]
    assert len(progress.losses) == progress.step == len(found[0][1]["update"])


def test_the_next_gradient_is_under_way_before_a_loss_is_asked_for(lags):
    scene = Scene()
    scene.train(steps=3)
    asked = [("gradient", 1), ("log", 1), ("gradient", 2), ("log", 2), ("gradient", 3), ("log", 3)]
    if lags:
        asked = [("gradient", 1), ("gradient", 2), ("log", 1), ("gradient", 3), ("log", 2), ("log", 3)]
    # What ends the training looks and saves.
    assert scene.kinds() == [*asked, ("look",), ("log", 3), ("save", 3)]


def test_nothing_is_saved_or_validated_that_has_not_been_read(monkeypatch):
    monkeypatch.setattr(loop, "may_lag", lambda _: True)
    scene = Scene()
    scene.train(steps=4, save_steps=2, eval_steps=3)
    kinds = [kind[0] if kind[0] == "look" else kind for kind in scene.kinds()]
    assert kinds.index(("log", 2)) < kinds.index(("save", 2)) < kinds.index(("gradient", 3))
    assert kinds.index(("log", 3)) < kinds.index("look") < kinds.index(("gradient", 4))


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_ends_training_with_its_own_step(what, lags):
    scene = Scene(spoilt=3, what=what)
    if what == "gradient":
        # The fourth root of zero has no slope.
        scene.weight.data = torch.tensor([2.0, -2.0])
    with pytest.raises(TrainingFailed, match=rf"the {what} became \S+ at step 3;"):
        scene.train(steps=6, save_steps=3)
    gradients = [event for event in scene.events if event[0] == "gradient"]
    # Step 3 would be saved, so it is read at once.
    assert len(gradients) == 3 and not [event for event in scene.events if event[0] == "save"]
    assert len([event for event in scene.events if event[0] == "update"]) == (3 if lags else 2)


def test_late_what_is_not_finite_is_noticed_before_the_next_update(monkeypatch):
    monkeypatch.setattr(loop, "may_lag", lambda _: True)
    scene = Scene(spoilt=3)
    with pytest.raises(TrainingFailed, match="step 3"):
        scene.train(steps=6)
    assert [event[0] for event in scene.events][-4:] == ["gradient", "log", "update", "gradient"]
    assert scene.number == 4


def test_a_scaler_decides_by_the_numbers_and_so_has_them_read_at_once(monkeypatch):
    monkeypatch.setattr(loop, "may_lag", lambda _: True)
    scene = Scene()
    scene.train(steps=2, scaler=torch.amp.GradScaler("cpu", enabled=False))
    assert scene.kinds()[:4] == [("gradient", 1), ("log", 1), ("gradient", 2), ("log", 2)]


def test_only_a_gpu_is_asked_late():
    assert [loop.may_lag(torch.device(kind)) for kind in ("cpu", "mps", "cuda")] == [False, False, True]


@pytest.mark.parametrize("kind", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))])  # fmt: skip
def test_numbers_arrive_as_they_were_sent(kind):
    values = torch.tensor([1 / 3, 1e-300], dtype=torch.float64, device=kind)
    numbers = Numbers(7, 0.5, values)
    assert numbers.read() == (1 / 3, 1e-300) and (numbers.step, numbers.rate) == (7, 0.5)


def test_every_so_many_steps_and_the_last_are_logged(lags):
    scene = Scene()
    scene.train(steps=5, logging_steps=2)
    assert [event[1] for event in scene.events if event[0] == "log" and "loss" in event[2]] == [2, 4, 5]


class Skipping:
    """A loss scaler that leaves every step out, as after an overflow."""

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        """Leave the gradients."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take no step."""

    def update(self) -> None:
        """Stay."""


def test_an_overflow_is_part_of_training_with_a_scaler_and_logged_as_clipped():
    scene = Scene(spoilt=2, what="gradient")
    scene.weight.data = torch.tensor([2.0, -2.0])
    scene.train(steps=3, scaler=Skipping())
    norms = [event[2]["grad_norm"] for event in scene.events if event[0] == "log" and "loss" in event[2]]
    assert norms[1] == 1.0 and norms[0] == norms[2] > 1.0


def test_the_time_that_steps_take_is_counted_to_the_end_of_the_last(lags, monkeypatch):
    clock, waited = [0.0], set()

    def wait(numbers: Numbers) -> None:
        if numbers.step not in waited:
            waited.add(numbers.step)
            clock[0] += 10.0

    monkeypatch.setattr(loop.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(Numbers, "wait", wait)
    scene = Scene()
    scene.train(steps=3)
    assert scene.spent.training == 30.0


class Failing(Scene):
    """A scene in which the gradient of step 4 fails."""

    def step(self, items: Sequence[object]) -> StepLoss:
        if self.number == 3:
            raise RuntimeError("index out of range")
        return super().step(items)


@pytest.mark.usefixtures("lags")
def test_the_step_before_one_that_fails_is_logged_and_named_if_it_was_not_finite():
    scene = Failing()
    with pytest.raises(RuntimeError, match="index out of range"):
        scene.train(steps=6)
    assert [event[1] for event in scene.events if event[0] == "log"] == [1, 2, 3]
    with pytest.raises(TrainingFailed, match="step 3"):
        Failing(spoilt=3).train(steps=6)


def test_an_error_is_told_even_where_nothing_more_can_be_read(monkeypatch):
    monkeypatch.setattr(loop, "may_lag", lambda _: True)

    def dead(numbers: Numbers) -> None:
        if numbers.step == 3:
            raise RuntimeError("the device is gone")

    monkeypatch.setattr(Numbers, "wait", dead)
    with pytest.raises(RuntimeError, match="index out of range"):
        Failing().train(steps=6)


class Short(Scene):
    """A scene in which memory runs out once, in step 3."""

    def __init__(self) -> None:
        super().__init__()
        self.has_failed = False

    def step(self, items: Sequence[object]) -> StepLoss:
        if self.number == 2 and not self.has_failed:
            self.has_failed = True
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().step(items)


@pytest.mark.usefixtures("lags")
def test_what_is_logged_where_memory_runs_out_comes_in_the_order_of_steps():
    scene = Short()
    train(
        scene.step, [[()]] * 4, scene.optimizer, scene.scheduler, Plan(4, 2, 1, ALWAYS, ALWAYS, 1.0, 0),
        start=Progress(0, 0, (), ()), sink=scene, checkpointer=scene, micro=MicroBatches(4, 4, may_shrink=True),
    )  # fmt: skip
    steps = [event[1] for event in scene.events if event[0] == "log"]
    assert scene.has_failed and steps == sorted(steps) and len(steps) == 5
