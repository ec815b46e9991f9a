"""From conversations to tokens and back-propagation targets, for any chat template.

What is unusual: no marker of any template family is written here. Where an answer starts and ends, and
which token ends it, is found by rendering prefixes of the conversation with the template itself.
"""

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from core.data.records import Conversation, Message
from core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORE_INDEX = -100
"""Label of a token that is not trained."""

_SYSTEM, _QUESTION, _ANSWER = "Probe system text.", "Probe question?", "Probe answer."


class Encoded(NamedTuple):
    """Tokens of one example and which of them are trained."""

    input_ids: list[int]
    """[s]"""
    labels: list[int]
    """[s]; the token's id where it is trained, else ``IGNORE_INDEX``. Not shifted."""


class _Turn(NamedTuple):
    """One assistant turn in a rendered text."""

    text: str
    """The conversation up to and with this turn."""
    start: int
    """Character at which generation would start."""
    end: int
    """Character after the end-of-turn token."""


class ChatTokenizer:
    """A tokenizer that speaks one chat template.

    Every sequence starts with exactly one BOS token if the tokenizer has one, whether the
    template, the tokenizer, both or neither add it.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", template: str) -> None:
        """Find out by rendering how the template treats system turns and ends an answer.

        Args:
            tokenizer: A Hugging Face fast tokenizer.
            template: Jinja source, see ``template_for``.

        Raises:
            ModelError: If the template cannot render a plain conversation, or ends no answer with a token.
        """
        self.tokenizer = tokenizer
        self.template = template
        self.folds_system = not self._takes_system()
        self._suffix, self._eot = self._derive_end_of_turn()

    @property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant turn: what generation stops at."""
        return (self._ids_without_bos(self._eot)[-1],)

    @property
    def serving_template(self) -> str:
        """The template to ship: it writes the BOS itself, so that every runtime sees what was trained."""
        bos = self.tokenizer.bos_token
        asked = self.render([Message(role="user", content=_QUESTION)], add_generation_prompt=True)
        if bos is None or asked.startswith(str(bos)):
            return self.template
        return "{{ bos_token }}" + self.template

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids generation stops at: the template's end of turn and the tokenizer's EOS."""
        eos = self.tokenizer.eos_token_id
        return frozenset(self.end_of_turn_ids) | ({eos} if isinstance(eos, int) else set())

    @property
    def pad_id(self) -> int:
        """Id that fills up shorter rows; masked, so any will do."""
        tokens = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id)
        return next((token for token in tokens if isinstance(token, int)), 0)

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        """Return the text of a conversation as the template writes it.

        Where the template refuses or drops system turns, the system text opens the first user turn.

        Args:
            messages: The turns.
            add_generation_prompt: Whether to open an assistant turn at the end.

        Raises:
            ModelError: If the template refuses the conversation.
        """
        turns = _folded(messages) if self.folds_system else list(messages)
        try:
            return self._apply(turns, add_generation_prompt)
        except TemplateError as error:
            raise ModelError(
                f"the chat template refuses a conversation: {error}",
                where="the tokenizer's chat template",
                fix="choose a model whose template takes alternating user and assistant turns",
            ) from error

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens from which the model answers; a final assistant turn is left out.

        Args:
            messages: The turns, with or without the answer.

        Returns:
            Token ids, [s].
        """
        asked = messages[:-1] if messages and messages[-1].role == "assistant" else messages
        return self._ids(self.render(asked, add_generation_prompt=True))

    def encode(self, conversation: Conversation) -> list[Encoded]:
        """Return the training examples of a conversation.

        Trained are the assistant's words and the token that ends its turn, nothing else. If the
        template writes earlier turns differently once later ones follow (Qwen3 drops their thinking),
        there is one example per assistant turn with the history it would see; otherwise one in all.

        Raises:
            ModelError: If the template's answers do not continue its own generation prompt.
        """
        messages = conversation.messages
        turns = [self._turn(messages[: i + 1]) for i, turn in enumerate(messages) if turn.role == "assistant"]
        text = turns[-1].text
        if all(text.startswith(turn.text) for turn in turns):
            return [self._labelled(text, [(turn.start, turn.end) for turn in turns])]
        return [self._labelled(turn.text, [(turn.start, turn.end)]) for turn in turns]

    def _turn(self, messages: Sequence[Message]) -> _Turn:
        prompt = self.render(messages[:-1], add_generation_prompt=True)
        text = self.render(messages)
        if not text.startswith(prompt) or not text.endswith(self._suffix):
            raise ModelError(
                "the chat template writes an answer in a way that generation could never produce",
                where="the tokenizer's chat template",
                fix="choose a model whose answers continue the template's generation prompt",
            )
        return _Turn(
            text, len(prompt), len(text) - len(self._suffix) + self._suffix.index(self._eot) + len(self._eot)
        )

    def _labelled(self, text: str, spans: Sequence[tuple[int, int]]) -> Encoded:
        # Spans are located by tokenising prefixes, not by offsets: those are empty for trimmed
        # spaces and equal for the several tokens of one character.
        cuts = [place for span in spans for place in span]
        ids = self._ids(text)
        heads = [self._ids(text[:cut]) for cut in cuts]
        if any(ids[: len(head)] != head for head in heads):
            ids, heads = self._cut_tokens(text, cuts, ids)
        borders = [_common(ids, head) for head in heads]
        labels = [IGNORE_INDEX] * len(ids)
        for start, end in zip(borders[::2], borders[1::2], strict=True):
            labels[start:end] = ids[start:end]
        return Encoded(ids, labels)

    def _cut_tokens(self, text: str, cuts: list[int], whole: list[int]) -> tuple[list[int], list[list[int]]]:
        # A token reaches across the border of an answer. Generation starts from the prompt's own
        # tokens, so training should too, if the pieces still spell the same text.
        ends = [0, *cuts, len(text)]
        pieces = [self._ids_without_bos(text[a:b]) for a, b in itertools.pairwise(ends)]
        pieces[0] = self._ids(text[: cuts[0]])
        joined = [token for piece in pieces for token in piece]
        if self.tokenizer.decode(joined) == self.tokenizer.decode(whole):
            sizes = [sum(len(piece) for piece in pieces[: n + 1]) for n in range(len(cuts))]
            return joined, [joined[:size] for size in sizes]
        return whole, [self._ids(text[:cut]) for cut in cuts]

    def _ids(self, text: str) -> list[int]:
        ids = self._ids_without_bos(text)
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return ids
        first = next((place for place, token in enumerate(ids) if token != bos), len(ids))
        return [bos, *ids[first:]]

    def _ids_without_bos(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _apply(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            [{"role": turn.role, "content": turn.content} for turn in messages],
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return str(text)

    def _takes_system(self) -> bool:
        # Some templates raise on a system turn, others drop it once an answer follows.
        turns = [Message(role="system", content=_SYSTEM), Message(role="user", content=_QUESTION)]
        try:
            prompt = self._apply(turns, True)
            text = self._apply([*turns, Message(role="assistant", content=_ANSWER)], False)
        except TemplateError:
            return False
        return _SYSTEM in prompt and text.startswith(prompt)

    def _derive_end_of_turn(self) -> tuple[str, str]:
        turns = [Message(role="user", content=_QUESTION), Message(role="assistant", content=_ANSWER)]
        _, found, suffix = self.render(turns).rpartition(_ANSWER)
        known = {str(token) for token in self.tokenizer.added_tokens_decoder.values()}
        ends = [token for token in known | set(self.tokenizer.all_special_tokens) if token in suffix]
        if not found or not ends:
            raise ModelError(
                "the chat template ends no answer with a special token: the model could not learn to stop",
                where="the tokenizer's chat template",
                fix="add the template's end-of-turn token to the tokenizer, or choose another template",
            )
        # The first one; of two that start at the same place the longer.
        return suffix, min(ends, key=lambda token: (suffix.index(token), -len(token)))


def _folded(messages: Sequence[Message]) -> list[Message]:
    if len(messages) < 2 or messages[0].role != "system":
        return list(messages)
    system, first, *rest = messages
    return [Message(role=first.role, content=f"{system.content}\n\n{first.content}"), *rest]


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))
