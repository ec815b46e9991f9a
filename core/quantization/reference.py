"""The merged model's logits on its own answers: what every file made from it is held against.

They are computed once and kept in files beside the work, because a vocabulary of 262 thousand makes one
position a megabyte.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.quantization.distance import DistanceSum, Logits
from core.quantization.reports import Distance

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROOM = 1 << 30
"""Most bytes of logits kept on disk."""
MOST_POSITIONS = 96
"""Most positions of one passage; the first answer tokens, and as many prompt tokens before them as are left."""
FEWEST_POSITIONS = 8
ROOMY = 1.2
"""Memory that must be free for each byte of weights: activations and logits come on top."""


class Passage(NamedTuple):
    """A question and the merged model's own answer to it, as tokens."""

    ids: list[int]
    """Prompt and answer, [s]."""
    answer: int
    """Where the answer starts: the position before it predicts its first token."""


class Reference(NamedTuple):
    """A passage and where the merged model's logits on it lie."""

    ids: list[int]
    """[s], cut after the last position kept."""
    first: int
    """First position whose logits are kept."""
    answer: int
    """First position whose logits predict the answer; at least ``first``."""
    path: Path
    """[len(ids) - first, v], float32."""

    def logits(self) -> Logits:
        """Read them."""
        found: NDArray[np.float32] = np.load(self.path, mmap_mode="r", allow_pickle=False)
        return found


Compute = Callable[[list[int], int], Logits]
"""Given ids ``[s]`` and a first position, return the logits from there on, ``[s - first, v]``."""


def write_reference(
    compute: Compute, passages: Sequence[Passage], folder: Path, vocabulary: int
) -> list[Reference]:
    """Run the merged model over passages and keep its logits.

    Args:
        compute: The merged model.
        passages: What it is run on.
        folder: Where the logits go; at most about a gigabyte.
        vocabulary: Width of the logits, v.
    """
    room = ROOM // max(1, len(passages) * vocabulary * 4)
    positions = min(MOST_POSITIONS, max(FEWEST_POSITIONS, room))
    kept = []
    for number, passage in enumerate(passages):
        ids, first = _window(passage, positions)
        path = folder / f"{number}.npy"
        np.save(path, compute(ids, first).astype(np.float32, copy=False), allow_pickle=False)
        kept.append(Reference(ids, first, passage.answer - 1, path))
    return kept


def _window(passage: Passage, positions: int) -> tuple[list[int], int]:
    """Cut a passage so that half of the positions at least go to the answer, and say where they start."""
    start = passage.answer - 1
    end = min(len(passage.ids), start + max(positions // 2, positions - start))
    return passage.ids[:end], max(0, end - positions)


def distance(compute: Compute, references: Sequence[Reference], *, answers_only: bool) -> Distance | None:
    """Compare a file's logits with the reference.

    Args:
        compute: The file at work.
        references: The merged model's logits.
        answers_only: Leave out the positions of the prompt that were kept.

    Returns:
        The distance; None if the file gave logits that are no numbers.
    """
    total = DistanceSum()
    for reference, wanted in _each(references, answers_only):
        first = reference.answer if answers_only else reference.first
        total.add(wanted, compute(reference.ids, first))
    return total.total() if total.is_finite else None


def _each(references: Sequence[Reference], answers_only: bool) -> Iterator[tuple[Reference, Logits]]:
    for reference in references:
        skipped = reference.answer - reference.first if answers_only else 0
        yield reference, reference.logits()[skipped:]


def model_logits(model: "PreTrainedModel") -> Compute:
    """Return the function that runs a PyTorch model on a passage, in float32 where its weights are."""
    import torch

    running: Any = model

    def compute(ids: list[int], first: int) -> Logits:
        with torch.inference_mode():
            given = torch.tensor([ids], device=running.device)
            logits = running(input_ids=given, logits_to_keep=len(ids) - first).logits[0]
        return np.asarray(logits.float().cpu().numpy())

    return compute


def load_reference(folder: Path) -> "PreTrainedModel":
    """Load the merged model in float32, so that only the files round.

    A GPU without room for float32 leaves the work to the processor; where that has none either, bfloat16 on
    whichever there is must do, and rounds about as much as a bf16 file.
    """
    import psutil
    import torch

    from core.models.devices import pick_device
    from core.models.hf import read_weights

    needed = ROOMY * _float32_bytes(folder)
    cpu, here = torch.device("cpu"), pick_device()
    fits_gpu = here.type == "cuda" and torch.cuda.mem_get_info()[0] > needed
    fits_memory = psutil.virtual_memory().available > needed
    device = here if fits_gpu or not fits_memory else cpu
    dtype = torch.float32 if fits_gpu or fits_memory else torch.bfloat16
    model: PreTrainedModel = read_weights(str(folder), device, dtype)
    return model.eval()  # type: ignore[no-any-return]


def _float32_bytes(folder: Path) -> int:
    from safetensors import safe_open

    total = 0
    for shard in folder.glob("*.safetensors"):
        with safe_open(str(shard), framework="pt") as weights:
            total += sum(4 * math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return total
