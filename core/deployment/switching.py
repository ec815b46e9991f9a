"""Talk through PyTorch to a base whose adapter is switched between answers."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from core.data.chat import ChatTokenizer
from core.data.examples import as_messages
from core.deployment.llama import Completion
from core.errors import DataError
from core.evaluation.inference import borrowed, own_randomness
from core.models.adapter_set import AdapterSet
from core.models.hf import window_of
from core.models.loading import load_folder
from core.models.seed import seed_step

HALF = "\N{REPLACEMENT CHARACTER}"
"""What a character decodes to while tokens of it are missing."""


class AdapterRuntime:
    """A base and its adapters, one of which answers; it speaks as ``LlamaRuntime`` does."""

    def __init__(self, adapters: AdapterSet, base: PreTrainedModel, chat: ChatTokenizer) -> None:
        """Use the first adapter.

        Args:
            adapters: At least one, loaded on ``base``.
            base: The model below them.
            chat: Tokenizer and template that they were trained with.
        """
        self.adapters, self.model, self.chat = adapters, base, chat
        self.in_use: str | None = None
        self.use(adapters.names[0])

    @classmethod
    def load(cls, base: Path, adapters: Mapping[str, Path], chat: ChatTokenizer) -> Self:
        """Load the base once and put every adapter on it.

        Raises:
            ModelError: If the base cannot be loaded, or an adapter is not for it.
        """
        model = load_folder(base)
        return cls(AdapterSet.load(model, adapters), model, chat)

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order they were given."""
        return self.adapters.names

    def use(self, name: str | None) -> None:
        """Let an adapter answer from now on, or the bare base with None.

        Raises:
            ModelError: If there is no such adapter.
        """
        self.adapters.use(name)
        self.in_use = name

    @property
    def window(self) -> int | None:
        """Tokens of prompt and answer together, or None if the model names no limit."""
        return window_of(self.model.config)

    def generate(
        self,
        prompt: Sequence[dict[str, Any]],
        *,
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int = 3407,
        stream: Callable[[str], None] | None = None,
    ) -> Completion:
        """Answer a conversation with what is in use.

        Args:
            prompt: Role and content of each turn.
            max_new_tokens: Longest answer, in tokens; the window may end it sooner.
            temperature: 0 takes the likeliest token each time.
            seed: Decides the draws at other temperatures.
            stream: Receives the text piece by piece, always whole characters.

        Raises:
            DataError: If the prompt fills the window.
        """
        began, ids = time.perf_counter(), self.chat.prompt_ids(as_messages(prompt))
        room = self._room(len(ids))
        settings = self._settings(min(max_new_tokens, room), temperature)
        streamer = Streamer(self.chat, stream or (lambda text: None))
        inputs = torch.tensor([ids], device=self.model.device)
        with borrowed(self.model), own_randomness(), torch.no_grad():
            seed_step(seed, len(ids))
            self.model.generate(  # type: ignore[operator]
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                generation_config=settings,
                streamer=streamer,
            )
        finish = "stop" if streamer.stopped else "length" if max_new_tokens <= room else "context"
        made, spent = streamer.ids, time.perf_counter() - began
        return Completion(streamer.text.strip(), made, len(ids), len(made), spent, finish)

    def _room(self, used: int) -> int:
        """Return how many tokens an answer may have."""
        if self.window is None:
            return 2**31
        if used >= self.window:
            raise DataError(
                f"the prompt has {used} tokens, the model's window {self.window}",
                fix="shorten the conversation",
            )
        return self.window - used

    def _settings(self, most: int, temperature: float) -> GenerationConfig:
        # top_k is off: what a call leaves open, Transformers sets to 50.
        draws = (
            {"do_sample": True, "temperature": temperature, "top_k": 0}
            if temperature
            else {"do_sample": False}
        )
        return GenerationConfig(
            max_new_tokens=most,
            eos_token_id=sorted(self.chat.stop_ids),
            pad_token_id=self.chat.pad_id,
            use_cache=True,
            **draws,
        )


class Streamer(BaseStreamer):  # type: ignore[misc]
    """Passes on the text of new tokens as soon as their characters are whole."""

    def __init__(self, chat: ChatTokenizer, tell: Callable[[str], None]) -> None:
        """Remember who is told."""
        self.chat, self.tell = chat, tell
        self.ids: list[int] = []
        self.text, self.stopped, self._prompt = "", False, True

    def put(self, value: Tensor) -> None:
        """Take the next tokens; what comes first is the prompt."""
        if self._prompt:
            self._prompt = False
            return
        for token in value.flatten().tolist():
            self.stopped = self.stopped or token in self.chat.stop_ids
            if not self.stopped:
                self.ids.append(token)
                self._advance(self._decoded())

    def end(self) -> None:
        """Pass on what is left, a broken character too."""
        self._advance(self._decoded(), last=True)

    def _decoded(self) -> str:
        tokenizer = self.chat.tokenizer
        return str(tokenizer.decode(self.ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _advance(self, text: str, *, last: bool = False) -> None:
        if len(text) > len(self.text) and (last or not text.endswith(HALF)):
            self.tell(text[len(self.text) :])
            self.text = text
