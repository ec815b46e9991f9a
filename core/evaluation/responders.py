"""What a model must be able to do to be evaluated: answer, and perhaps score and sample."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

Message = dict[str, Any]
"""A turn as split files hold it: role, content, and what tools need."""
Tick = Callable[[int, int], None]
"""Called with (done, total) as answers arrive."""


class Answer(NamedTuple):
    """What a model said."""

    text: str
    prompt_ids: list[int]
    n_generated: int


class Scored(NamedTuple):
    """How surprised a model is by an answer that it is shown."""

    nll: float
    """Negative log-likelihood of the answer's tokens and the token that ends it, in nats."""
    tokens: int
    """How many those are."""
    end: float = 0.0
    """Part of nll that the ending token alone owes."""


class Responder(Protocol):
    """Anything that answers conversations greedily: a PyTorch model or a GGUF file."""

    def answer(self, prompts: Sequence[list[Message]], max_new_tokens: int, tick: Tick) -> list[Answer]:
        """Answer every conversation, in order."""
        ...


@runtime_checkable
class Scorer(Protocol):
    """A responder that also tells how likely a given answer is."""

    def score(
        self, prompts: Sequence[list[Message]], references: Sequence[Message], tick: Tick
    ) -> list[Scored]:
        """Score every reference after its conversation.

        Args:
            prompts: Conversations up to the answer; an empty one means that the reference is a plain text.
            references: The assistant turns to score.
            tick: Progress listener.
        """
        ...


@runtime_checkable
class Sampler(Protocol):
    """A responder that also draws several answers to a question."""

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
        """Draw n answers to every conversation; the same seed draws the same answers."""
        ...
