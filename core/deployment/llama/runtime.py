"""A GGUF file, ready to answer: the parent's side of the llama.cpp worker process."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import psutil
from numpy.typing import NDArray

from core.errors import DataError, EngineFailed, FactoryError, ModelError

ROOT = Path(__file__).resolve().parents[3]
Message = dict[str, str]
Prompt = Sequence[Message] | Sequence[int]


@dataclass(frozen=True)
class Completion:
    """What the model said, without the token that ended it."""

    text: str
    token_ids: list[int]
    n_prompt: int
    n_generated: int
    seconds: float
    """Reading the prompt and writing the answer."""
    finish: str
    """stop (the model ended), length (max_new_tokens) or context (window full)."""


class LlamaRuntime:
    """One GGUF file in a process of its own; a context manager.

    llama.cpp aborts on a broken file or an internal assert. In a child process that
    becomes an exception here, and its memory can be measured on its own.
    """

    def __init__(
        self, path: Path, *, context_length: int = 1024, threads: int = 1, exact: bool = False
    ) -> None:
        """Start the process and wait until the file is loaded.

        Args:
            path: GGUF file.
            context_length: Tokens of prompt and answer together.
            threads: Threads that compute; waiting threads spin, so more than the idle cores are slower.
            exact: Keep keys and values in float32, for comparisons with other engines.

        Raises:
            ModelError: If the file is missing or llama.cpp refuses it.
            EngineFailed: If the process dies while loading.
        """
        self.path, self.context_length = path, context_length
        _check_magic(path)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  (lives as long as the process)
        self._lock = threading.Lock()
        start = time.perf_counter()
        command = [sys.executable, "-m", "core.deployment.llama.worker", str(path.resolve())]
        command += ["--context", str(context_length), "--threads", str(threads)] + ["--exact"] * exact
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            # Ctrl-C in the terminal is for the parent, which then ends the child.
            start_new_session=True,
        )
        try:
            self.vocabulary: int = self._reply("loading")["vocabulary"]
        except BaseException:
            self.close()
            raise
        self.load_seconds = time.perf_counter() - start

    def __enter__(self) -> Self:
        """Return the running engine."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the process."""
        self.close()

    def close(self) -> None:
        """End the process; again is fine."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                _close_quietly(pipe)
        self._log.close()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Turn a conversation into the prompt's tokens, with the file's own template and tokenizer.

        Args:
            messages: Role and content of each turn.

        Returns:
            Token ids, up to where the assistant's answer starts.

        Raises:
            DataError: If the template refuses the conversation.
            ModelError: If the file has no template.
        """
        return list(self._ask({"op": "encode", "messages": list(messages)})["ids"])

    def tokenize(self, text: str, *, add_special: bool = False) -> list[int]:
        """Split plain text; ``add_special`` adds what the file says belongs around it."""
        return list(self._ask({"op": "tokenize", "text": text, "add_special": add_special})["ids"])

    def generate(
        self,
        prompt: Prompt,
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 3407,
        stream: Callable[[str], None] | None = None,
    ) -> Completion:
        """Answer a conversation, or continue tokens.

        Args:
            prompt: Messages or token ids.
            max_new_tokens: Longest answer, in tokens.
            temperature: 0 takes the likeliest token each time.
            seed: Decides the draws at other temperatures.
            stream: Receives the text piece by piece, always whole characters.

        Returns:
            The answer.

        Raises:
            DataError: If the prompt is longer than the context window.
            EngineFailed: If the process dies.
        """
        ids = self._ids(prompt)
        request = {
            "op": "generate",
            "ids": ids,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
        }
        done = self._ask(request, stream)
        made = list(done["ids"])
        return Completion(done["text"], made, len(ids), len(made), done["seconds"], done["finish"])

    def logits(self, ids: Sequence[int], *, first: int = 0) -> NDArray[np.float32]:
        """Return the scores after the tokens, ``[s - first, v]``; open with ``exact=True`` to compare them.

        Args:
            ids: A prompt, or a prompt and its answer.
            first: Place of the first token whose scores are wanted. The scores that decide an answer
                begin after the prompt's last token: ``first=len(prompt) - 1``. What lies before costs
                no scores, and nothing at all where the last request began the same way.

        Raises:
            DataError: If there are more tokens than the context window holds.
        """
        with tempfile.TemporaryDirectory(prefix="logits-") as folder:
            path = Path(folder) / "float32"
            self._ask({"op": "logits", "ids": list(ids), "first": first, "path": str(path)})
            return np.fromfile(path, dtype=np.float32).reshape(len(ids) - first, self.vocabulary)

    def memory_mb(self) -> float:
        """Return the process's resident memory in MiB.

        Raises:
            EngineFailed: If the process is gone.
        """
        if self._process.poll() is not None:
            raise self._failure("idle")
        return float(psutil.Process(self._process.pid).memory_info().rss) / 2**20

    def _ids(self, prompt: Prompt) -> list[int]:
        if all(isinstance(item, int) for item in prompt):
            return [int(item) for item in prompt]  # type: ignore[arg-type]
        return self.encode([item for item in prompt if isinstance(item, dict)])

    def _ask(self, request: dict[str, Any], stream: Callable[[str], None] | None = None) -> dict[str, Any]:
        with self._lock:
            self._send(request)
            return self._reply(request["op"], stream)

    def _reply(self, during: str, stream: Callable[[str], None] | None = None) -> dict[str, Any]:
        try:
            last = self._last(self._receive(during), stream)
        except BaseException:
            # Interrupted half-way: later replies would belong to this request.
            self._process.kill()
            raise
        if "error" in last:
            raise self._refusal(last["error"], last["message"], last["fix"])
        return dict(last["done"])

    def _send(self, request: dict[str, Any]) -> None:
        pipe = self._process.stdin
        if pipe is None or pipe.closed:
            raise EngineFailed(f"{self.path.name}: the llama.cpp process was closed")
        try:
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
        except BrokenPipeError as error:
            raise self._failure(request["op"]) from error

    def _receive(self, during: str) -> Iterator[dict[str, Any]]:
        pipe = self._process.stdout
        assert pipe is not None
        for line in pipe:
            yield json.loads(line)
        raise self._failure(during)

    def _last(
        self, replies: Iterator[dict[str, Any]], stream: Callable[[str], None] | None
    ) -> dict[str, Any]:
        for reply in replies:
            if "text" not in reply:
                return reply
            if stream is not None:
                stream(reply["text"])
        raise AssertionError("replies end only by raising")

    def _refusal(self, kind: str, message: str, fix: str) -> FactoryError:
        if kind == "data":
            return DataError(message, where=self.path.name, fix=fix)
        if kind == "model":
            return ModelError(message, where=str(self.path), fix=fix)
        if kind == "file":
            return ModelError(f"{message}\n{self._tail(3)}", where=str(self.path), fix="write the file again")
        return EngineFailed(f"{self.path.name}: {message}\n{self._tail(5)}")

    def _failure(self, during: str) -> EngineFailed:
        code = self._process.wait()
        return EngineFailed(f"{self.path.name}: llama.cpp died ({during}, exit code {code})\n{self._tail(8)}")

    def _tail(self, lines: int) -> str:
        if self._log.closed:
            return ""
        self._log.seek(0)
        text = self._log.read().decode("utf-8", "replace").strip()
        return "\n".join(text.splitlines()[-lines:])


def _check_magic(path: Path) -> None:
    if not path.is_file():
        raise ModelError("there is no such file", where=str(path))
    with path.open("rb") as stream:
        if stream.read(4) != b"GGUF":
            raise ModelError("this is not a GGUF file", where=str(path))


def _close_quietly(pipe: IO[bytes]) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        return
