"""How likely a GGUF file finds an answer that it is shown: what perplexity needs."""

from collections.abc import Callable, Sequence

import numpy as np

from core.data.chat import IGNORE_INDEX, Encoded
from core.deployment.llama.responder import LlamaResponder
from core.deployment.llama.runtime import LlamaRuntime
from core.evaluation.responders import Message, Scored, Tick
from core.quantization.distance import log_softmax

Encode = Callable[[Sequence[list[Message]], Sequence[Message]], list[list[Encoded]]]
"""Conversations and references in, the examples of each reference out; see ``core.evaluation.shown``."""


class LlamaScorer(LlamaResponder):
    """Answers, and scores given answers on the very tokens that the merged model was scored on."""

    def __init__(
        self, runtime: LlamaRuntime, prepare: Callable[[list[Message]], list[Message]], encode: Encode
    ) -> None:
        """Take an open runtime.

        Args:
            runtime: The file at work; its window must hold every example.
            prepare: Turns rows' turns into what the template takes.
            encode: Turns conversations and references into tokens with labels.
        """
        super().__init__(runtime, prepare)
        self.encode = encode

    def score(
        self, prompts: Sequence[list[Message]], references: Sequence[Message], tick: Tick
    ) -> list[Scored]:
        """Score every reference after its conversation."""
        scored = []
        for number, group in enumerate(self.encode(prompts, references), 1):
            losses = [loss for example in group for loss in self._losses(example)]
            scored.append(Scored(sum(losses), len(losses), losses[-1] if losses else 0.0))
            if number % 10 == 0 or number == len(prompts):
                tick(number, len(prompts))
        return scored

    def _losses(self, example: Encoded) -> list[float]:
        """Return -log p of every labelled token; the position before a token predicts it."""
        places = [at for at, label in enumerate(example.labels) if label != IGNORE_INDEX and at > 0]
        if not places:
            return []
        first = places[0] - 1
        likely = log_softmax(self.runtime.logits(example.input_ids[: places[-1]], first=first))
        rows = np.array(places) - 1 - first
        return [float(-loss) for loss in likely[rows, [example.labels[at] for at in places]]]
