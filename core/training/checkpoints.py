"""Resumable training states: trainable tensors, optimizer, schedule, progress."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.artifacts import atomic_path, write_json
from core.training.loop import Progress

PREFIX = "checkpoint-"


class TrainingCheckpoints:
    """Saves and restores the state of one training run in a folder of its own.

    Only the newest state is kept; it is renamed into place whole, so a killed writer
    leaves the previous one. A state belongs to one fingerprint (settings, data, code):
    a run with another fingerprint starts afresh.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        parameters: dict[str, Tensor],
        optimizer: torch.optim.Optimizer,
        scheduler: torch.optim.lr_scheduler.LRScheduler,
    ) -> None:
        """Remember what to save; ``parameters`` are the trainable tensors by name."""
        self.folder, self.fingerprint = folder, fingerprint
        self.parameters, self.optimizer, self.scheduler = parameters, optimizer, scheduler

    def save(self, progress: Progress) -> None:
        """Store the state after ``progress.step`` steps and drop older ones."""
        target = self.folder / f"{PREFIX}{progress.step}"
        with atomic_path(target) as part:
            part.mkdir()
            save_file(
                {k: v.detach().contiguous() for k, v in self.parameters.items()},
                part / "trainable.safetensors",
            )
            state = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
            torch.save(state, part / "optimizer.pt")
            write_json(part / "progress.json", {"fingerprint": self.fingerprint, **progress._asdict()})
        for step, old in self._saved():
            if step != progress.step:
                shutil.rmtree(old)

    def restore(self) -> Progress:
        """Load the newest state of this fingerprint into the tensors; zeros if there is none."""
        for _, folder in sorted(self._saved(), reverse=True):
            record = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
            if record.pop("fingerprint") != self.fingerprint:
                continue
            self._load(folder)
            evals = tuple((int(step), float(loss)) for step, loss in record["eval_losses"])
            return Progress(record["step"], record["tokens"], tuple(record["losses"]), evals)
        return Progress(0, 0, (), ())

    def _load(self, folder: Path) -> None:
        tensors = load_file(folder / "trainable.safetensors")
        if tensors.keys() != self.parameters.keys():
            raise KeyError(f"{folder} holds other tensors than this model trains")
        with torch.no_grad():
            for name, tensor in tensors.items():
                self.parameters[name].copy_(tensor)
        state: dict[str, Any] = torch.load(folder / "optimizer.pt", weights_only=True, map_location="cpu")
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])

    def _saved(self) -> list[tuple[int, Path]]:
        found = self.folder.glob(f"{PREFIX}*") if self.folder.is_dir() else []
        return [(int(p.name.removeprefix(PREFIX)), p) for p in found if p.name.removeprefix(PREFIX).isdigit()]


def discard_finished(folder: Path, total_steps: int) -> None:
    """Delete the state of a run that reached its last step, so that the next one starts afresh."""
    finished = folder / f"{PREFIX}{total_steps}"
    if finished.is_dir():
        shutil.rmtree(finished)
