"""The finetune phase with an engine that needs a process of its own: the run's process never meets it."""

import inspect
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from core.artifacts import Checkpoint, Splits, write_jsonl
from core.errors import EngineFailed, ModelError
from core.models.config import LoraConfig, ModelConfig
from core.training.config import SaveConfig, TrainingConfig
from flows.display import Silent
from gates.thresholds import GatesConfig
from tasks import finetune
from tasks.context import RunContext
from tasks.workspace import Workspace
from tests.families import build

ROOT = Path(__file__).parents[2]
STAND_IN = ROOT / "tests/stand_in"
STEPS = 6
EDITED = {"transformers", "peft", "trl", "accelerate", "bitsandbytes", "tokenizers", "datasets"}
TRAINING = TrainingConfig(
    per_device_train_batch_size=4, gradient_accumulation_steps=1, optim="adamw_torch", learning_rate=1e-2,
    eval_steps=3, save_steps=2, warmup_steps=1, max_steps=STEPS,
)  # fmt: skip


class Watched(Silent):
    """Keeps what a person would see."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def advanced(self, phase: str, done: int, total: int, note: str) -> None:
        self.seen.append((phase, done, total, note))

    def measured(self, phase: str, step: int, metrics: Any) -> None:
        self.seen.append((phase, step, {k: v for k, v in metrics.items() if k != "tokens_per_second"}))


class Room:
    """A workspace with splits, and what the phase was told and did in it."""

    def __init__(self, root: Path) -> None:
        turns = [{"role": "user", "content": "What is 3 + 4?"}, {"role": "assistant", "content": "It is 7."}]
        for name, count in (("train", 12), ("val", 4), ("test", 1)):
            rows = [{"id": f"{name}{n}", "conversations": turns, "metadata": {}} for n in range(count)]
            write_jsonl(root / f"data/splits/{name}.jsonl", rows)
        self.place, self.watched = Workspace(root), Watched()
        self.splits = Splits.of(self.place.splits)
        self.context = RunContext(
            name="t", workspace=self.place, tracker=None, watcher=self.watched, base=root, gates=GatesConfig()
        )  # type: ignore[arg-type]

    def train(self, base: Path, **model: Any) -> Any:
        # What the phase does, without the tracking around it.
        carried = inspect.getclosurevars(finetune.finetune).nonlocals["carried"]
        body = inspect.getclosurevars(carried.fn).nonlocals["body"]
        settings = ModelConfig(**{"name": str(base), "load_in_4bit": False, "max_seq_length": 256, **model})
        lora = LoraConfig(r=4, lora_dropout=0.1, use_gradient_checkpointing=False)
        given = {
            "base": Checkpoint.of(base), "splits": self.splits, "model": settings, "lora": lora, "training": TRAINING,
            "save": SaveConfig(), "template": "auto",
        }  # fmt: skip
        asked = {name: given.get(name) for name in list(inspect.signature(body).parameters)[2:]}
        return body(self.context, "sha256:key", **asked).result.report

    @property
    def status(self) -> dict[str, Any]:
        return json.loads(self.place.status.read_text())

    @property
    def log(self) -> str:
        return (self.place.root / "logs/training-process.log").read_text()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def test_the_phase_trains_with_unsloth_and_its_own_process_never_imports_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base = build("llama-3.2", tmp_path / "base")
    monkeypatch.setenv("PYTHONPATH", str(STAND_IN))
    # It could be imported here as well.
    monkeypatch.syspath_prepend(str(STAND_IN))
    assert "unsloth" not in sys.modules
    theirs, ours = Room(tmp_path / "unsloth"), Room(tmp_path / "hf")
    report = theirs.train(base, framework="unsloth", dtype="float32")
    assert "unsloth" not in sys.modules
    assert report.framework == "unsloth"
    before = theirs.log.split("modules before unsloth: ")[1].splitlines()[0].split()
    assert "torch" in before
    assert not {name.partition(".")[0] for name in before} & EDITED

    # The stand-in computes what hf computes, so all else has to be the same as well.
    wanted = ours.train(base)
    differ = {"framework", "seconds", "tokens_per_second", "peak_memory_bytes"}
    assert report.model_dump(exclude=differ) == wanted.model_dump(exclude=differ)
    assert theirs.watched.seen == ours.watched.seen
    assert [seen[1] for seen in theirs.watched.seen if isinstance(seen[2], dict) and "loss" in seen[2]] == [
        *range(1, STEPS + 1)
    ]
    clock = {"started_at", "last_updated", "completed_at", "checkpoint_at"}
    assert {k: v for k, v in theirs.status.items() if k not in clock} == {
        k: v for k, v in ours.status.items() if k not in clock
    }
    assert (theirs.status["running"], theirs.status["step"], theirs.status["error"]) == (False, STEPS, None)
    assert theirs.status["checkpoint_at"]
    lines = [[each for each in text.split() if "=" in each and "tokens_per_second" not in each]
             for text in (theirs.place.training_log.read_text(), ours.place.training_log.read_text())]  # fmt: skip
    assert lines[0] == lines[1]
    assert not (ours.place.root / "logs/training-process.log").exists()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        ("raise ImportError('no kernels')", ModelError, "cannot be imported: no kernels"),
        ("import os; os.kill(os.getpid(), 9)", EngineFailed, "SIGKILL"),
    ],
)
def test_a_training_process_that_fails_leaves_a_true_status(
    tmp_path: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch, code: str, kind, words: str
):
    place = tmp_path / "packages"
    place.mkdir()
    (place / "torch.py").write_text("class cuda:\n    is_available = staticmethod(lambda: True)\n")
    (place / "unsloth.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(place))
    room = Room(tmp_path / "ws")
    with pytest.raises(kind, match=words):
        room.train(base_folder, framework="unsloth")
    assert room.status["running"] is False
    assert words in room.status["error"]
    assert not list(room.place.root.rglob("*.part"))
