"""Resumable training states: trainable tensors, optimizer, schedule, loss scale, progress; and the best tensors."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.artifacts import atomic_path, write_json
from core.training.loop import Progress
from core.training.meter import Spent
from core.training.optim import page_again
from core.training.stopping import best_step

PREFIX, BEST = "checkpoint-", "best-"
TENSORS, STATE, PROGRESS = "trainable.safetensors", "optimizer.pt", "progress.json"


class TrainingCheckpoints:
    """Saves and restores the state of one training run in a folder of its own.

    Only the newest state is kept; it is renamed into place whole, so a killed writer
    leaves the previous one. A state belongs to one fingerprint (settings, data, code):
    a run with another fingerprint starts afresh. Beside it lie the tensors of the lowest validation loss;
    older ones go only when a state has been saved that knows the newer ones.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        parameters: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        """Remember what to save; ``parameters`` are the trainable tensors by name."""
        self.folder, self.fingerprint = folder, fingerprint
        self.parameters, self.optimizer, self.scheduler = parameters, optimizer, scheduler
        self.scaler = scaler

    def save(self, progress: Progress, spent: Spent) -> None:
        """Store the state after ``progress.step`` steps and drop older ones."""
        with atomic_path(self.folder / f"{PREFIX}{progress.step}") as part:
            self._write_tensors(part)
            state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
            scale = {"scaler": self.scaler.state_dict()} if self.scaler else {}
            torch.save(state | scale, part / STATE)
            record = {"fingerprint": self.fingerprint, **progress._asdict(), "spent": spent._asdict()}
            write_json(part / PROGRESS, record)
        self._drop(PREFIX, progress.step)
        self._drop(BEST, best_step(progress.eval_losses))

    def keep_best(self, step: int) -> None:
        """Store the trainable tensors of ``step``, the best so far."""
        with atomic_path(self.folder / f"{BEST}{step}") as part:
            self._write_tensors(part)
            write_json(part / PROGRESS, {"fingerprint": self.fingerprint, "step": step})

    def restore(self) -> tuple[Progress, Spent]:
        """Load the newest state of this fingerprint into the tensors; zeros if there is none."""
        for _, folder in sorted(_saved(self.folder, PREFIX), reverse=True):
            record = _read(folder)
            if record.pop("fingerprint") != self.fingerprint:
                continue
            self._read_tensors(folder)
            self._read_state(folder)
            spent = Spent(**record.pop("spent"))
            record["losses"] = tuple(record["losses"])
            record["eval_losses"] = tuple((int(step), float(loss)) for step, loss in record["eval_losses"])
            return Progress(**record), spent
        return Progress(0, 0, (), ()), Spent()

    def restore_best(self, step: int) -> None:
        """Load the tensors that ``keep_best`` stored for ``step``.

        Raises:
            FileNotFoundError: If they are not there, or belong to another run.
        """
        folder = self.folder / f"{BEST}{step}"
        if _read(folder)["fingerprint"] != self.fingerprint:
            raise FileNotFoundError(f"{folder} belongs to another training run")
        self._read_tensors(folder)

    def _write_tensors(self, part: Path) -> None:
        part.mkdir()
        save_file({k: v.detach().contiguous() for k, v in self.parameters.items()}, part / TENSORS)

    def _read_tensors(self, folder: Path) -> None:
        tensors = load_file(folder / TENSORS)
        if tensors.keys() != self.parameters.keys():
            raise KeyError(f"{folder} holds other tensors than this model trains")
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.parameters[name].copy_(tensor)

    def _read_state(self, folder: Path) -> None:
        state: dict[str, Any] = torch.load(folder / STATE, weights_only=True, map_location="cpu")
        self.optimizer.load_state_dict(state["optimizer"])
        page_again(self.optimizer)
        self.scheduler.load_state_dict(state["scheduler"])
        if self.scaler:
            self.scaler.load_state_dict(state["scaler"])

    def _drop(self, prefix: str, wanted: int | None) -> None:
        for step, old in _saved(self.folder, prefix):
            if step != wanted:
                shutil.rmtree(old)


def _read(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / PROGRESS).read_text(encoding="utf-8"))
    return record


def _saved(folder: Path, prefix: str) -> list[tuple[int, Path]]:
    found = folder.glob(f"{prefix}*") if folder.is_dir() else []
    return [(int(p.name.removeprefix(prefix)), p) for p in found if p.name.removeprefix(prefix).isdigit()]


def discard_finished(folder: Path, total_steps: int) -> None:
    """Delete the state of a run that reached its end, so that the next one starts afresh."""
    for step, finished in _saved(folder, PREFIX):
        if step == total_steps or _read(finished).get("stopped_early"):
            shutil.rmtree(finished)
