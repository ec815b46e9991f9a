"""Runs an exported folder under ONNX Runtime: logits, step-by-step logits, greedy text."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from core.deployment.onnx.names import CACHE_AXES, INPUTS, MODEL_FILE, past_names, present_names
from core.deployment.onnx.probe import require_onnx
from core.errors import ModelError, ResourceError

Ids = NDArray[np.int64]
Logits = NDArray[np.float32]

LOGITS_BYTES = 256 * 2**20
"""Most bytes of logits at once: a prompt is read in pieces, for every piece yields scores of the whole vocabulary."""
AGAIN = "export it again"
PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")


class State(NamedTuple):
    """What generation carries from step to step."""

    cache: list[Any]
    """Keys and values of all layers, each [b, g, t, d], where the session computes."""
    ids: Ids
    """What was read, [b, t]."""
    mask: Ids
    """[b, t]; 0 where a row is padded on the left."""


class OnnxRunner:
    """An open ONNX model with its cache handling."""

    def __init__(self, folder: Path, *, threads: int) -> None:
        """Open the model on a GPU if ONNX Runtime has one, else on the CPU.

        Args:
            folder: What ``export`` wrote.
            threads: Threads that compute.

        Raises:
            ConfigError: If the packages are missing.
            ModelError: If there is no model, or ONNX Runtime refuses it.
            ResourceError: If memory runs out while loading.
        """
        require_onnx()
        self.folder, self.path = folder, folder / MODEL_FILE
        self._session = _open(self.path, threads)
        self.provider: str = self._session.get_providers()[0]
        self._device = "cuda" if self.provider.startswith("CUDA") else "cpu"
        inputs = {each.name: each for each in self._session.get_inputs()}
        layers = sum(name.endswith(".key") for name in inputs)
        self._past, self._present = past_names(layers), present_names(layers)
        # Number of key-value heads and their width; the other axes are free.
        if not layers or not {*INPUTS, *self._past} == set(inputs):
            raise ModelError(
                "this is no ONNX model with a key-value cache of ours", where=str(self.path), fix=AGAIN
            )
        self._cache_shapes = [_fixed(inputs[name].shape, self.path) for name in self._past]
        self.switch = read_switch(folder)
        self.vocabulary = int(self._session.get_outputs()[0].shape[-1])

    def logits(self, ids: Ids) -> Logits:
        """Return the scores after every token, from one pass over whole rows.

        Args:
            ids: Token ids without padding, [b, s].

        Returns:
            Scores, [b, s, v].
        """
        return self.advance(ids, self._empty(len(ids)))[0]

    def decode_logits(self, ids: Ids) -> Logits:
        """Return the same scores as ``logits``, token by token through the cache.

        Args:
            ids: Token ids without padding, [b, s].

        Returns:
            Scores, [b, s, v].
        """
        state = self._empty(len(ids))
        made = []
        for place in range(ids.shape[1]):
            scores, state = self.advance(ids[:, place : place + 1], state)
            made.append(scores)
        return np.concatenate(made, axis=1)

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: frozenset[int]
    ) -> list[list[int]]:
        """Continue prompts greedily, in one batch.

        Args:
            prompts: Token ids of each prompt, at least one each.
            max_new_tokens: Longest continuation.
            stop_ids: Ids that end a continuation; not part of what is returned.

        Returns:
            New token ids of each prompt.
        """
        # The longest row of a batch decides by which angles all are turned: those that may outgrow them run alone.
        limit = None if self.switch is None else self.switch - max_new_tokens
        alone = [limit is not None and len(prompt) > limit for prompt in prompts]
        together = [prompt for prompt, is_alone in zip(prompts, alone, strict=True) if not is_alone]
        made = iter(self._generate(together, max_new_tokens, stop_ids))
        return [
            self._generate([prompt], max_new_tokens, stop_ids)[0] if is_alone else next(made)
            for prompt, is_alone in zip(prompts, alone, strict=True)
        ]

    def _generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, stop_ids: frozenset[int]
    ) -> list[list[int]]:
        if not prompts or max_new_tokens < 1:
            return [[] for _ in prompts]
        made: list[list[int]] = [[] for _ in prompts]
        running = np.ones(len(prompts), dtype=bool)
        scores, state = self.begin(prompts)
        for count in range(1, max_new_tokens + 1):
            chosen = scores[:, -1].argmax(-1)
            running &= ~np.isin(chosen, list(stop_ids))
            for row in np.flatnonzero(running):
                made[row].append(int(chosen[row]))
            if count == max_new_tokens or not running.any():
                break
            scores, state = self.advance(chosen[:, None], state)
        return made

    def begin(self, prompts: Sequence[Sequence[int]]) -> tuple[Logits, State]:
        """Read prompts, padded on the left.

        Args:
            prompts: Token ids of each prompt, at least one each.

        Returns:
            Scores of the last tokens, [b, s, v], and what the next step needs.
        """
        width = max(len(prompt) for prompt in prompts)
        ids = np.array([[0] * (width - len(p)) + list(p) for p in prompts], dtype=np.int64)
        mask = np.array([[0] * (width - len(p)) + [1] * len(p) for p in prompts], dtype=np.int64)
        piece = max(1, LOGITS_BYTES // (4 * self.vocabulary * len(prompts)))
        if self.switch is not None and width > self.switch:
            piece = width
        state = self._empty(len(ids))
        for first in range(0, width, piece):
            rows = slice(first, first + piece)
            scores, state = self.advance(ids[:, rows], state, mask[:, rows])
        return scores, state

    def advance(self, ids: Ids, state: State, seen: Ids | None = None) -> tuple[Logits, State]:
        """Read further tokens.

        Args:
            ids: Token ids, [b, s].
            state: What the model has read before.
            seen: 0 where a token is padding, [b, s]; None if none is.

        Returns:
            Scores, [b, s, v], and what the next step needs.
        """
        seen = np.ones_like(ids) if seen is None else seen
        mask, everything = (
            np.concatenate([state.mask, seen], axis=1),
            np.concatenate([state.ids, ids], axis=1),
        )
        if self._switches(state.mask, mask):
            # What is cached was turned by other angles: all is read again, as transformers does here.
            scores, state = self.advance(everything, self._empty(len(ids)), mask)
            return scores[:, -ids.shape[1] :], state
        positions = count_positions(mask)[:, -ids.shape[1] :]
        binding = self._session.io_binding()
        # The binding does not own these arrays; they must outlive the run.
        feeds = [np.ascontiguousarray(array, dtype=np.int64) for array in (ids, mask, positions)]
        for name, array in zip(INPUTS, feeds, strict=True):
            binding.bind_cpu_input(name, array)
        for name, value in zip(self._past, state.cache, strict=True):
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits", "cpu")
        for name in self._present:
            binding.bind_output(name, self._device)
        self._session.run_with_iobinding(binding)
        scores, *cache = binding.get_outputs()
        return scores.numpy(), State(cache, everything, mask)

    def _switches(self, before: Ids, after: Ids) -> bool:
        """Whether a text grows past the length at which rotary angles change, given its masks [b, t]."""
        if self.switch is None or before.shape[1] == 0:
            return False
        return bool(before.sum(1).max() <= self.switch < after.sum(1).max())

    def _empty(self, rows: int) -> State:
        import onnxruntime

        shapes = [(rows, heads, 0, width) for heads, width in self._cache_shapes]
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        cache = [make(np.zeros(shape, np.float32), self._device, 0) for shape in shapes]
        nothing = np.zeros((rows, 0), dtype=np.int64)
        return State(cache, nothing, nothing)


def count_positions(mask: Ids) -> Ids:
    """Number each row's own tokens from 0; padding gets 0 as well, for nobody looks at it.

    Args:
        mask: 0 where a row is padded, [b, t].

    Returns:
        Positions, [b, t].
    """
    positions: Ids = np.maximum(mask.cumsum(1) - 1, 0)
    return positions


def read_switch(folder: Path) -> int | None:
    """Return the length past which a model turns all its positions by other angles (longrope, arXiv:2402.13753).

    Args:
        folder: Folder with a config.json.

    Returns:
        Tokens; None for models whose angles do not depend on the length.
    """
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) != "longrope":
        return None
    length = rope.get("original_max_position_embeddings", config.get("original_max_position_embeddings"))
    return None if length is None else int(length)


def _open(path: Path, threads: int) -> Any:
    import onnxruntime

    if not path.is_file():
        raise ModelError("there is no ONNX model here", where=str(path), fix=AGAIN)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that wait must not burn the cores that others compute on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    here = set(onnxruntime.get_available_providers())
    try:
        return onnxruntime.InferenceSession(
            str(path), options, providers=[name for name in PROVIDERS if name in here]
        )
    except MemoryError as error:
        raise ResourceError("not enough memory to open the ONNX model", where=str(path)) from error
    except Exception as error:
        raise ModelError(
            f"ONNX Runtime cannot open the model: {_first_line(error)}", where=str(path), fix=AGAIN
        ) from error


def _fixed(shape: Sequence[int | str], path: Path) -> tuple[int, int]:
    heads, width = (shape[CACHE_AXES.index(axis)] for axis in ("heads", "width"))
    if not isinstance(heads, int) or not isinstance(width, int):
        raise ModelError("the cache inputs have no fixed number of heads", where=str(path), fix=AGAIN)
    return heads, width


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
