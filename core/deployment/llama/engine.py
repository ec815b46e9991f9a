"""llama.cpp through its C interface: one model, one context, one conversation at a time.

Runs in the worker process only. Imports nothing but llama_cpp and the standard library.
"""

import codecs
import ctypes
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import llama_cpp as lib

BATCH = 512
# ggml_log_level of warnings and errors.
KEPT_LEVELS = (3, 4)


@lib.llama_log_callback  # type: ignore[untyped-decorator]
def _print_warnings(level: int, text: bytes, _: object) -> None:
    """Keep llama.cpp's warnings and errors; its thousand lines of chatter would bury them."""
    if level in KEPT_LEVELS:
        sys.stderr.write(text.decode("utf-8", "replace"))
        sys.stderr.flush()


class Refused(Exception):
    """A request or a file the engine cannot serve; the process stays healthy."""

    def __init__(self, kind: str, message: str, fix: str = "") -> None:
        """Name the kind of fault: file, model, data or engine."""
        super().__init__(message)
        self.kind, self.fix = kind, fix


class Generated(NamedTuple):
    """What one generation gave."""

    text: str
    ids: list[int]
    finish: str
    """stop (the model ended), length (max_new_tokens) or context (window full)."""
    seconds: float


class Engine:
    """A loaded GGUF file."""

    def __init__(self, path: str, context: int, threads: int, exact: bool) -> None:
        """Load a file.

        Args:
            path: GGUF file.
            context: Tokens the window holds.
            threads: Threads that compute.
            exact: Keep keys and values in float32 and attend without the fused kernel.

        Raises:
            Refused: If llama.cpp does not accept the file.
        """
        lib.llama_log_set(_print_warnings, ctypes.c_void_p(0))
        lib.llama_backend_init()
        self.context = context
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            raise Refused("file", "llama.cpp cannot load the file")
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.size = lib.llama_vocab_n_tokens(self.vocab)
        self.ctx = lib.llama_init_from_model(self.model, self._settings(threads, exact))
        if not self.ctx:
            raise Refused("file", "llama.cpp cannot make a context for the file")
        self.memory = lib.llama_get_memory(self.ctx)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)
        self.seen: list[int] = []
        self.stops: frozenset[int] = frozenset()
        """Ids that end an answer; if none are set, those that llama.cpp takes for ends."""

    def _settings(self, threads: int, exact: bool) -> Any:
        settings = lib.llama_context_default_params()
        settings.n_ctx = self.context
        settings.n_batch = settings.n_ubatch = BATCH
        settings.n_threads = settings.n_threads_batch = threads
        if exact:
            settings.type_k = settings.type_v = lib.GGML_TYPE_F32
            settings.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        return settings

    def metadata(self, key: str) -> str | None:
        """Return one metadata value as text, None if the file has no such key."""
        probe = ctypes.create_string_buffer(1)
        length = lib.llama_model_meta_val_str(self.model, key.encode(), probe, 1)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        lib.llama_model_meta_val_str(self.model, key.encode(), buffer, length + 1)
        return buffer.value.decode("utf-8")

    def special_tokens(self) -> dict[str, str]:
        """Return the texts of the special tokens the file declares, named as templates call them."""
        found = {}
        for short, long in (("bos", "bos"), ("eos", "eos"), ("pad", "padding"), ("unk", "unknown")):
            number = self.metadata(f"tokenizer.ggml.{long}_token_id")
            if number is not None:
                found[f"{short}_token"] = lib.llama_vocab_get_text(self.vocab, int(number)).decode("utf-8")
        return found

    def control_tokens(self) -> list[str]:
        """Return the texts of the control tokens; some may not be valid text, which nobody can write."""
        ids = [token for token in range(self.size) if lib.llama_vocab_is_control(self.vocab, token)]
        return [lib.llama_vocab_get_text(self.vocab, token).decode("utf-8", "replace") for token in ids]

    def tokenize(self, text: str, add_special: bool) -> list[int]:
        """Split text into token ids; special tokens written out in the text count as such."""
        data = text.encode("utf-8")
        room = len(data) + 8
        ids = (lib.llama_token * room)()
        count = lib.llama_tokenize(self.vocab, data, len(data), ids, room, add_special, True)
        if count < 0:
            ids = (lib.llama_token * -count)()
            count = lib.llama_tokenize(self.vocab, data, len(data), ids, -count, add_special, True)
        return list(ids[:count])

    def piece(self, token: int, lstrip: int) -> bytes:
        """Return a token's bytes, without ``lstrip`` leading spaces; control tokens have none."""
        room = 64
        buffer = ctypes.create_string_buffer(room)
        count = lib.llama_token_to_piece(self.vocab, token, buffer, room, lstrip, False)
        if count < 0:
            buffer = ctypes.create_string_buffer(-count)
            count = lib.llama_token_to_piece(self.vocab, token, buffer, -count, lstrip, False)
        return buffer.raw[:count]

    def check_fits(self, ids: list[int]) -> None:
        """Refuse a prompt that leaves no room in the window, or is not one.

        Raises:
            Refused: If the prompt is empty, too long, or has ids outside the vocabulary.
        """
        if not ids or min(ids) < 0 or max(ids) >= self.size:
            raise Refused("data", f"the prompt must hold token ids below {self.size}, and at least one")
        if len(ids) >= self.context:
            raise Refused(
                "data",
                f"the prompt has {len(ids)} tokens, the context window {self.context}",
                "shorten the conversation or raise context_length",
            )

    def _decode(self, ids: list[int], start: int, scored: int) -> None:
        """Process tokens; from the place ``scored`` on, and after the last one, scores are kept."""
        self.batch.n_tokens = len(ids)
        for at, token in enumerate(ids):
            self.batch.token[at] = token
            self.batch.pos[at] = start + at
            self.batch.n_seq_id[at] = 1
            self.batch.seq_id[at][0] = 0
            self.batch.logits[at] = at >= scored or at == len(ids) - 1
        status = lib.llama_decode(self.ctx, self.batch)
        if status != 0:
            self.seen = []
            lib.llama_memory_clear(self.memory, True)
            raise Refused("engine", f"llama_decode failed with status {status}")

    def read(self, ids: list[int]) -> None:
        """Process a prompt, keeping what it shares with the one before."""
        for at in range(self._keep(ids, len(ids) - 1), len(ids), BATCH):
            part = ids[at : at + BATCH]
            self._decode(part, at, len(part))
            self.seen += part

    def _keep(self, ids: list[int], most: int) -> int:
        """Forget all but the beginning shared with the prompt before, and return its length."""
        shared = 0
        while shared < min(most, len(self.seen)) and ids[shared] == self.seen[shared]:
            shared += 1
        if not lib.llama_memory_seq_rm(self.memory, 0, shared, -1):
            lib.llama_memory_clear(self.memory, True)
            shared = 0
        self.seen = ids[:shared]
        return shared

    def generate(
        self, ids: list[int], limit: int, temperature: float, seed: int, emit: Callable[[str], None]
    ) -> Generated:
        """Continue a prompt.

        Args:
            ids: The prompt's tokens.
            limit: Most tokens to produce.
            temperature: 0 takes the likeliest token each time.
            seed: Decides the draws at other temperatures.
            emit: Receives text as soon as its bytes are complete characters.

        Returns:
            Text and tokens without the token that ended them.

        Raises:
            Refused: If the prompt does not fit the window.
        """
        self.check_fits(ids)
        start = time.perf_counter()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        texts: list[str] = []
        out: list[int] = []
        lstrip = int(self.metadata("tokenizer.ggml.add_space_prefix") == "true")
        finish = "length"
        self.read(ids)
        with _sampler(temperature, seed) as sampler:
            for token in self._tokens(sampler, limit):
                if token is None:
                    finish = "context"
                elif self._ends(token):
                    finish = "stop"
                else:
                    texts.append(decoder.decode(self.piece(token, 0 if out else lstrip)))
                    out.append(token)
                    emit(texts[-1])
                    continue
                break
        texts.append(decoder.decode(b"", final=True))
        emit(texts[-1])
        return Generated("".join(texts), out, finish, time.perf_counter() - start)

    def _ends(self, token: int) -> bool:
        return token in self.stops if self.stops else bool(lib.llama_vocab_is_eog(self.vocab, token))

    def _tokens(self, sampler: Any, limit: int) -> Iterator[int | None]:
        """Yield one token after the other; None when the window is full."""
        for left in range(limit, 0, -1):
            token = lib.llama_sampler_sample(sampler, self.ctx, -1)
            yield token
            if left == 1:
                return
            if len(self.seen) >= self.context:
                yield None
                return
            self._decode([token], len(self.seen), 0)
            self.seen.append(token)

    def logits(self, ids: list[int], first: int) -> Iterator[bytes]:
        """Yield the logits after the tokens of a prompt from the place ``first`` on: float32, row by row.

        Raises:
            Refused: If the prompt does not fit the window.
        """
        self.check_fits(ids)
        for at in range(self._keep(ids, first), len(ids), BATCH):
            part = ids[at : at + BATCH]
            scored = max(first - at, 0)
            self._decode(part, at, scored)
            self.seen += part
            for place in range(scored, len(part)):
                yield ctypes.string_at(lib.llama_get_logits_ith(self.ctx, place), 4 * self.size)


@contextmanager
def _sampler(temperature: float, seed: int) -> Iterator[Any]:
    chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
    if temperature > 0:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_temp(temperature))
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_dist(seed))
    else:
        lib.llama_sampler_chain_add(chain, lib.llama_sampler_init_greedy())
    try:
        yield chain
    finally:
        lib.llama_sampler_free(chain)
