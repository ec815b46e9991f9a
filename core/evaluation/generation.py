"""Batched generation, sampling and scoring with a PyTorch model."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from core.data.chat import ChatTokenizer
from core.data.examples import as_messages
from core.evaluation.inference import borrowed, in_batches, own_randomness
from core.evaluation.likelihood import affordable, token_losses
from core.evaluation.responders import Answer, Message, Scored, Tick
from core.evaluation.shown import shown_examples
from core.models.hf import window_of
from core.models.seed import seed_step

WINDOW = 1024
"""Tokens of a plain text that are scored together: longer ones are cut, as in training."""


class TorchResponder:
    """Answers conversations with a Hugging Face model, KV cache on.

    Prompts are left-padded and sorted by length, so a batch wastes little; the longest come first, so
    too little memory shows at once, and batches are halved until they fit. Answers come back in the
    order of the questions, and the model as it was.
    """

    def __init__(self, model: PreTrainedModel, chat: ChatTokenizer, batch_size: int) -> None:
        """Remember the model, its chat tokenizer, and how many prompts run at once."""
        self.model, self.chat, self.batch_size = model, chat, batch_size

    @property
    def window(self) -> int | None:
        """Positions that the model knows, or None if its settings name none."""
        return window_of(self.model.config)

    def prompt_length(self, messages: Sequence[Message]) -> int:
        """Count the tokens of a conversation as a prompt."""
        return len(self.chat.prompt_ids(as_messages(messages)))

    def answer(self, prompts: Sequence[list[Message]], max_new_tokens: int, tick: Tick) -> list[Answer]:
        """Answer every conversation greedily."""
        groups = self._answered(prompts, 1, max_new_tokens, tick, None, {"do_sample": False})
        return [group[0] for group in groups]

    def sample(
        self,
        prompts: Sequence[list[Message]],
        n: int,
        *,
        temperature: float,
        top_p: float,
        seed: int,
        max_new_tokens: int,
        tick: Tick,
    ) -> list[list[Answer]]:
        """Draw n answers to every conversation, all n in one call of ``generate``.

        The same seed with the same batch size draws the same answers on the same device; generators
        are left as they were.

        Args:
            prompts: Conversations up to the answer.
            n: Answers to each.
            temperature: Divides the logits.
            top_p: Share of probability that the kept tokens make up; all others are never drawn.
            seed: Decides the draws.
            max_new_tokens: Longest answer.
            tick: Progress listener.
        """
        # top_k is off: what a call leaves open, Transformers sets to 50.
        settings = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        with own_randomness():
            return self._answered(prompts, n, max_new_tokens, tick, seed, settings)

    def score(
        self, prompts: Sequence[list[Message]], references: Sequence[Message], tick: Tick
    ) -> list[Scored]:
        """Score every reference by the losses that training on it would see.

        Plain texts are read in windows of ``WINDOW`` tokens, or the model's own if it is shorter.
        """
        window = min(WINDOW, self.window or WINDOW)
        groups = shown_examples(self.chat, prompts, references, window)
        pieces = [(owner, piece) for owner, group in enumerate(groups) for piece in group]
        order = sorted(range(len(pieces)), key=lambda i: -len(pieces[i][1].input_ids))
        losses: list[list[list[float]]] = [[] for _ in prompts]
        vocabulary = int(self.model.config.get_text_config().vocab_size)

        def run(chosen: Sequence[int]) -> list[list[float]]:
            return token_losses(self.model, [pieces[i][1] for i in chosen], self.chat.pad_id)

        def fits(chosen: Sequence[int]) -> bool:
            return affordable([pieces[i][1] for i in chosen], vocabulary)

        done = 0
        with borrowed(self.model):
            for chosen, found in in_batches(order, self.batch_size, run, fits):
                for index, values in zip(chosen, found, strict=True):
                    losses[pieces[index][0]].append(values)
                done += len(chosen)
                tick(done, len(pieces))
        return [_scored(each) for each in losses]

    def _answered(
        self,
        prompts: Sequence[list[Message]],
        n: int,
        max_new_tokens: int,
        tick: Tick,
        seed: int | None,
        settings: dict[str, Any],
    ) -> list[list[Answer]]:
        """Return n answers to each prompt; a seed makes the draws of a batch depend on its first prompt."""
        ids = [self.chat.prompt_ids(as_messages(messages)) for messages in prompts]
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        answers: dict[int, list[Answer]] = {}

        def run(chosen: Sequence[int]) -> list[list[int]]:
            if seed is not None:
                seed_step(seed, chosen[0])
            return self._generate([ids[i] for i in chosen], n, max_new_tokens, settings)

        with borrowed(self.model):
            for chosen, made in in_batches(order, max(1, self.batch_size // n), run):
                for place, index in enumerate(chosen):
                    own = made[place * n : (place + 1) * n]
                    answers[index] = [self._answer(ids[index], new) for new in own]
                tick(len(answers), len(ids))
        return [answers[i] for i in range(len(ids))]

    def _answer(self, prompt: list[int], new: list[int]) -> Answer:
        text = self.chat.tokenizer.decode(new, skip_special_tokens=True)
        return Answer(str(text).strip(), prompt, len(new))

    @torch.no_grad()
    def _generate(
        self, prompts: list[list[int]], n: int, max_new_tokens: int, settings: dict[str, Any]
    ) -> list[list[int]]:
        """Return the new token ids, up to and without the stop token; n rows for each prompt."""
        width = max(len(p) for p in prompts)
        pad, device = self.chat.pad_id, self.model.device
        input_ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        generation = GenerationConfig(
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(self.chat.stop_ids),
            pad_token_id=pad,
            use_cache=True,
            num_return_sequences=n,
            **settings,
        )
        output = self.model.generate(input_ids=input_ids, attention_mask=mask, generation_config=generation)  # type: ignore[operator]
        return [_until_stop(row, self.chat.stop_ids) for row in output[:, width:].tolist()]


def _until_stop(ids: list[int], stops: frozenset[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in stops:
            return ids[:position]
    return ids


def _scored(windows: Sequence[Sequence[float]]) -> Scored:
    losses = [loss for window in windows for loss in window]
    return Scored(sum(losses), len(losses), losses[-1] if losses else 0.0)
