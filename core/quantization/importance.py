"""How strongly texts use each input of each matrix: the importance matrix of llama.cpp's quantizers.

python -m core.quantization.importance SOURCE TEXTS TARGET CONTEXT THREADS

Importance of column j of a matrix W is the mean of x_j squared over the inputs x that W is multiplied with. A
quantizer that weighs rounding errors by it keeps W x close to what it was, instead of W: the expected squared
error of W x is, for inputs without correlation, the sum over j of E[x_j^2] (dW_ij)^2.

llama.cpp's own program for this is not part of any wheel. The library calls back before and after every
operation, which is enough to gather the same sums (its examples/imatrix gathers them so, too).
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.artifacts import scratch_beside
from core.errors import DataError
from core.quantization.engine import run_engine

LONGEST = 512
"""Tokens of one text that are used; also what is computed at once."""


def collect_importance(source: Path, texts: Iterable[Sequence[int]], target: Path, *, threads: int) -> int:
    """Run texts through a model and write the importance of every matrix's inputs.

    Args:
        source: GGUF file with 16-bit or 32-bit weights.
        texts: Token ids of one text each, as the model will see them when serving; long ones are cut.
        target: File to write (NumPy's .npz): one float32 array per matrix, by its name.
        threads: Threads that compute.

    Returns:
        How many tokens were read.

    Raises:
        DataError: If there are no texts.
        OSError: If the disk is full.
        EngineFailed: If this build of llama.cpp cannot be observed, or dies.
    """
    with scratch_beside(target) as folder:
        listed = folder / "texts.jsonl"
        kept = [[int(token) for token in ids][:LONGEST] for ids in texts]
        if not any(kept):
            raise DataError("there are no texts to calibrate with", fix="set quantization.imatrix: false")
        listed.write_text("".join(json.dumps(ids) + "\n" for ids in kept if ids), encoding="utf-8")
        made = folder / "importance.npz"
        arguments = [str(source.resolve()), str(listed), str(made), str(max(map(len, kept))), str(threads)]
        what = f"measure how strongly texts use the inputs of {source.name}"
        run_engine("core.quantization.importance", arguments, folder, what)
        made.replace(target)
    return sum(map(len, kept))


def load_importance(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read what ``collect_importance`` wrote."""
    with np.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


class Sums:
    """Sums of squared inputs by matrix, filled from llama.cpp's callback."""

    def __init__(self, product: int) -> None:
        """Start empty; ``product`` is the number of the operation matrix product."""
        self.product = product
        self.squares: dict[str, NDArray[np.float64]] = {}
        self.counts: dict[str, int] = {}
        self.error: Exception | None = None

    def hear(self, address: int, ask: bool, _: object) -> bool:
        """Say before an operation whether its inputs are wanted, and add them up after it.

        An exception cannot cross llama.cpp: it is kept for later, and False ends the computation.
        """
        try:
            return self._heard(address, ask)
        except Exception as error:  # noqa: BLE001  (kept for measure to raise)
            self.error = error
            return False

    def _heard(self, address: int, ask: bool) -> bool:
        from core.quantization.tensor_view import F32, Tensor, rows

        tensor = Tensor.from_address(address)
        if tensor.op != self.product:
            return not ask
        name = tensor.src[0].contents.name.decode("utf-8", "replace")
        given = tensor.src[1].contents
        if not name.startswith("blk.") or not name.endswith(".weight") or given.type != F32:
            return not ask
        if not ask:
            seen = rows(given).astype(np.float64)
            self.squares[name] = self.squares.get(name, 0.0) + np.square(seen).sum(axis=0)
            self.counts[name] = self.counts.get(name, 0) + len(seen)
        return True

    def means(self) -> dict[str, NDArray[np.float32]]:
        """Return the mean square of every input, by matrix."""
        return {n: (total / self.counts[n]).astype(np.float32) for n, total in self.squares.items()}


def measure(source: str, texts: Iterable[list[int]], context: int, threads: int, sums: Sums) -> None:
    """Compute every text in this process, every token's output included, while ``sums`` listens.

    Raises:
        RuntimeError: If llama.cpp refuses the file or a text.
    """
    import llama_cpp as lib

    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(source.encode(), lib.llama_model_default_params())
    settings = lib.llama_context_default_params()
    settings.n_ctx = settings.n_batch = settings.n_ubatch = context
    settings.n_threads = settings.n_threads_batch = threads
    listen = lib.ggml_backend_sched_eval_callback(sums.hear)
    settings.cb_eval = listen
    running = lib.llama_init_from_model(model, settings) if model else None
    if not running:
        raise RuntimeError("llama.cpp cannot load the file")
    batch = lib.llama_batch_init(context, 0, 1)
    for ids in texts:
        _compute(lib, running, batch, ids)
        if sums.error is not None:
            raise sums.error
    lib.llama_batch_free(batch)
    lib.llama_free(running)
    lib.llama_model_free(model)


def _compute(lib: Any, running: Any, batch: Any, ids: list[int]) -> None:
    lib.llama_memory_clear(lib.llama_get_memory(running), True)
    batch.n_tokens = len(ids)
    for at, token in enumerate(ids):
        batch.token[at], batch.pos[at], batch.n_seq_id[at] = token, at, 1
        batch.seq_id[at][0] = 0
        # Without it the last layer is computed for the last token alone.
        batch.logits[at] = True
    status = lib.llama_decode(running, batch)
    if status != 0:
        raise RuntimeError(f"llama_decode failed with status {status}")


def main(source: str, texts: str, target: str, context: int, threads: int) -> int:
    """Measure in this process; return 0."""
    from core.quantization.tensor_view import multiplication

    product = multiplication()
    if product is None:
        sys.exit(
            "this build of llama.cpp lays out its tensors in an unknown way: set quantization.imatrix: false"
        )
    sums = Sums(product)
    with Path(texts).open(encoding="utf-8") as lines:
        measure(source, map(json.loads, lines), context, threads, sums)
    means = sums.means()
    if not means or not all(np.isfinite(values).all() for values in means.values()):
        raise RuntimeError("no finite importance was measured")
    np.savez(target, **means)  # type: ignore[arg-type]
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5])))
