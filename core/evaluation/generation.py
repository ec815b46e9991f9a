"""Greedy batched generation with a PyTorch model."""

from collections.abc import Sequence

import torch
from transformers import GenerationConfig, PreTrainedModel

from core.data.chat import ChatTokenizer
from core.data.examples import as_messages
from core.evaluation.evaluate import Answer, Message, Tick


class TorchResponder:
    """Answers conversations with a Hugging Face model, KV cache on.

    Prompts are left-padded and sorted by length inside the call, so a batch wastes
    little; answers come back in the order of the questions.
    """

    def __init__(self, model: PreTrainedModel, chat: ChatTokenizer, batch_size: int) -> None:
        """Remember the model, its chat tokenizer, and how many prompts run at once."""
        self.model, self.chat, self.batch_size = model.eval(), chat, batch_size
        # Transformers fills what a call leaves open from the model's own settings: a repetition
        # penalty there would make this decoding another than llama.cpp's.
        self.model.generation_config = GenerationConfig()

    def answer(self, prompts: Sequence[list[Message]], max_new_tokens: int, tick: Tick) -> list[Answer]:
        """Answer every conversation greedily."""
        ids = [self.chat.prompt_ids(as_messages(messages)) for messages in prompts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        answers: dict[int, Answer] = {}
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            for index, new in zip(
                chosen, self._generate([ids[i] for i in chosen], max_new_tokens), strict=True
            ):
                text = self.chat.tokenizer.decode(new, skip_special_tokens=True)
                answers[index] = Answer(str(text).strip(), ids[index], len(new))
            tick(len(answers), len(ids))
        return [answers[i] for i in range(len(ids))]

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """Return the new token ids of each prompt, up to and without the stop token."""
        width = max(len(p) for p in prompts)
        pad, device = self.chat.pad_id, self.model.device
        input_ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
        settings = GenerationConfig(
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=sorted(self.chat.stop_ids),
            pad_token_id=pad,
            use_cache=True,
        )
        output = self.model.generate(input_ids=input_ids, attention_mask=mask, generation_config=settings)  # type: ignore[operator]
        return [_until_stop(row, self.chat.stop_ids) for row in output[:, width:].tolist()]


def _until_stop(ids: list[int], stops: frozenset[int]) -> list[int]:
    for position, token in enumerate(ids):
        if token in stops:
            return ids[:position]
    return ids
