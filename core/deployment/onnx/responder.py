"""Ask an ONNX model test questions, and how likely it finds given answers."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from core.deployment.onnx.runner import OnnxRunner
from core.evaluation.responders import Answer, Message, Scored, Tick
from core.quantization.distance import log_softmax

if TYPE_CHECKING:
    from core.data.chat import ChatTokenizer, Encoded

WINDOW = 1024
"""Tokens of a plain text that are read together, as when the merged model was scored."""


class OnnxResponder:
    """Answers conversations greedily; prompts of like length run together."""

    def __init__(self, runner: OnnxRunner, chat: "ChatTokenizer", batch_size: int) -> None:
        """Take an open model, its chat tokenizer, and how many prompts run at once."""
        self.runner, self.chat, self.batch_size = runner, chat, batch_size

    def answer(self, prompts: Sequence[list[Message]], max_new_tokens: int, tick: Tick) -> list[Answer]:
        """Answer every conversation, in order."""
        from core.data.examples import as_messages

        ids = [self.chat.prompt_ids(as_messages(messages)) for messages in prompts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        answers: dict[int, Answer] = {}
        for first in range(0, len(order), self.batch_size):
            chosen = order[first : first + self.batch_size]
            made = self.runner.generate([ids[i] for i in chosen], max_new_tokens, self.chat.stop_ids)
            for index, new in zip(chosen, made, strict=True):
                text = self.chat.tokenizer.decode(new, skip_special_tokens=True)
                answers[index] = Answer(str(text).strip(), ids[index], len(new))
            tick(len(answers), len(ids))
        return [answers[i] for i in range(len(ids))]

    def score(
        self, prompts: Sequence[list[Message]], references: Sequence[Message], tick: Tick
    ) -> list[Scored]:
        """Score every reference after its conversation, on the tokens that the merged model was scored on."""
        from core.evaluation.shown import shown_examples

        scored = []
        for number, group in enumerate(shown_examples(self.chat, prompts, references, WINDOW), 1):
            losses = [loss for example in group for loss in self._losses(example)]
            scored.append(Scored(sum(losses), len(losses), losses[-1] if losses else 0.0))
            tick(number, len(prompts))
        return scored

    def _losses(self, example: "Encoded") -> list[float]:
        """Return -log p of every labelled token; the position before a token predicts it."""
        from core.data.chat import IGNORE_INDEX

        places = [at for at, label in enumerate(example.labels) if label != IGNORE_INDEX and at > 0]
        if not places:
            return []
        ids = np.array([example.input_ids[: places[-1]]], dtype=np.int64)
        rows = self.runner.logits(ids)[0, np.array(places) - 1]
        wanted = [example.labels[at] for at in places]
        return [float(-likely) for likely in log_softmax(rows)[range(len(places)), wanted]]
