"""From conversations to tokens and back-propagation targets, for any chat template.

What is unusual: no marker of any template family is written here. Where an answer starts and ends, and
which token ends it, is found by rendering prefixes of the conversation with the template itself.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import TemplateError

from core.data.control_text import ControlText, encode_cut, uncut
from core.data.records import Conversation, Message
from core.data.template_probe import (
    ANSWER,
    ANSWERED,
    QUESTION,
    SYSTEM,
    Markers,
    find_markers,
    find_opening,
    folded,
    self_sufficient,
    writes_bos,
)
from core.data.templates import without_today
from core.data.tool_turns import (
    ONE_CALL,
    SEVERAL_CALLS,
    WORDS_AND_CALL,
    flattened,
    needs,
    probe,
    probe_texts,
    wire,
)
from core.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

IGNORE_INDEX = -100
"""Label of a token that is not trained."""

# What Jinja and the Python values inside a template raise when it is asked for what it does not know.
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, AttributeError)


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


class _Draft(NamedTuple):
    """An example before it is tokenised."""

    text: str
    cuts: list[int]
    """Characters at which an answer starts, ends, the next one starts, and so on."""


class ChatTokenizer:
    """A tokenizer that speaks one chat template.

    Every sequence starts with exactly one BOS token if the tokenizer has one, whether the
    template, the tokenizer, both or neither add it. Tool turns are written by the template where it
    can, else as text between ``<tool_call>`` and ``<tool_response>`` marks. The text of a control
    token inside a message never becomes that token. A template that writes today's date writes a fixed one.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", template: str) -> None:
        """Find out by rendering how the template treats system and tool turns and ends an answer.

        Args:
            tokenizer: A Hugging Face fast tokenizer.
            template: Jinja source, see ``template_for``.

        Raises:
            ModelError: If the template cannot render a plain conversation, or ends no answer with a token.
        """
        self.tokenizer = tokenizer
        self.template = without_today(template)
        control = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special}
        control |= set(tokenizer.all_special_tokens)
        self._control = ControlText(control)
        self.folds_system = not self._takes_system()
        self._suffix, self._eot = self._derive_end_of_turn()
        self.control_tokens = frozenset({*control, self._eot})
        """Texts that a message may spell without any effect."""
        self._control = ControlText(self.control_tokens)
        self._opening = find_opening(self._write)
        end = tokenizer.convert_tokens_to_ids(self._eot)
        self._eot_id = end if isinstance(end, int) else end[0]
        known = (ONE_CALL, SEVERAL_CALLS, WORDS_AND_CALL)
        self._writes = frozenset(need for need in known if self._can_write(need))

    @property
    def writes_tools(self) -> bool:
        """Whether the template has words of its own for tool calls and their answers."""
        return ONE_CALL in self._writes

    @property
    def end_of_turn_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant turn: what generation stops at."""
        return (self._eot_id,)

    @property
    def serving_template(self) -> str:
        """The template to ship: it does all by itself, so that every runtime sees what was trained."""
        bos = self.tokenizer.bos_token
        return self_sufficient(
            self.template,
            adds_bos=bos is not None and not writes_bos(self._write, str(bos)),
            folds_system=self.folds_system,
            opening=self._opening,
        )

    @property
    def markers(self) -> Markers:
        """What opens a user turn and an assistant turn."""
        return find_markers(self._write, self._eot)

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

        Where the template refuses or drops system turns, the system text opens the first user turn; where it
        does so with tool turns, they become text. An opened assistant turn includes an empty thought.

        Args:
            messages: The turns.
            add_generation_prompt: Whether to open an assistant turn at the end.

        Raises:
            ModelError: If the template refuses the conversation.
        """
        text = self._write(self._spoken(messages), add_generation_prompt)
        return uncut(text) + self._opening * add_generation_prompt

    def template_messages(self, messages: Sequence[Message]) -> list[dict[str, Any]]:
        """Return exactly what the template is given, so that another runtime can render the same prompt.

        Args:
            messages: The turns, without the answer that is asked for.

        Returns:
            Turns in the shape of Hugging Face and OpenAI.
        """
        return wire(self._fitting(self._spoken(messages)))

    def _write(self, messages: Sequence[Message], add_generation_prompt: bool = False) -> str:
        try:
            return self._apply(self._fitting(messages), add_generation_prompt)
        except TemplateError as error:
            raise ModelError(
                f"the chat template refuses a conversation: {error}",
                where="the tokenizer's chat template",
                fix="choose a model whose template takes alternating user and assistant turns",
            ) from error

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens from which the model answers, [s].

        Args:
            messages: The turns, with or without the answer, which is left out.
        """
        return self._ids(self._prompt(self._spoken(messages)))

    def parts(self, messages: Sequence[Message]) -> tuple[str, str]:
        """Return the text of a conversation that ends with an answer, cut where generation would start."""
        turn = self._turn(self._spoken(messages))
        return uncut(turn.text[: turn.start]), uncut(turn.text[turn.start :])

    def encode(self, conversation: Conversation) -> list[Encoded]:
        """Return the training examples of a conversation; see ``encode_all``."""
        return self.encode_all([conversation])[0]

    def encode_all(self, conversations: Iterable[Conversation]) -> list[list[Encoded]]:
        """Return the training examples of each conversation, tokenised together, which is faster.

        Trained are the assistant's words and calls and the token that ends its turn, nothing else. If the
        template writes earlier turns differently once later ones follow (Qwen3 drops their thinking),
        there is one example per assistant turn with the history it would see; otherwise one in all.

        Raises:
            ModelError: If the template's answers do not continue its own generation prompt.
        """
        drafts = [self._drafts(conversation) for conversation in conversations]
        texts = {text for group in drafts for draft in group for text in (draft.text, *_prompts(draft))}
        ids = dict(zip(texts, map(self._with_bos, self._tokenise(list(texts))), strict=True))
        return [[self._labelled(draft, ids) for draft in group] for group in drafts]

    def encode_documents(self, texts: Sequence[str], max_length: int) -> list[list[Encoded]]:
        """Return the training examples of plain texts: BOS, the text, EOS, all of it trained.

        A long text is cut into windows; each starts by only reading the last token of the one before.

        Args:
            texts: Plain texts.
            max_length: Most tokens of an example, at least 2.
        """
        end = self.tokenizer.eos_token_id
        closing = [end] if isinstance(end, int) else []
        ids = self._tokenise([self._control.cut(text) for text in texts])
        return [_windows(self._with_bos(each) + closing, max_length) for each in ids]

    def encode_document(self, text: str, max_length: int) -> list[Encoded]:
        """Return the training examples of one plain text; see ``encode_documents``."""
        return self.encode_documents([text], max_length)[0]

    def _drafts(self, conversation: Conversation) -> list[_Draft]:
        messages = self._spoken(conversation.messages)
        turns = [self._turn(messages[: i + 1]) for i, turn in enumerate(messages) if turn.role == "assistant"]
        text = turns[-1].text
        if all(text.startswith(turn.text) for turn in turns):
            return [_Draft(text, [cut for turn in turns for cut in (turn.start, turn.end)])]
        return [_Draft(turn.text, [turn.start, turn.end]) for turn in turns]

    def _prompt(self, turns: Sequence[Message]) -> str:
        if not turns or turns[-1].role != "assistant":
            return self._write(turns, add_generation_prompt=True) + self._opening
        if not self._opening:
            return self._write(turns[:-1], add_generation_prompt=True)
        # Whether an answer has thoughts of its own decides where it starts.
        turn = self._turn(turns)
        return turn.text[: turn.start]

    def _turn(self, messages: Sequence[Message]) -> _Turn:
        prompt = self._write(messages[:-1], add_generation_prompt=True)
        text = self._write(messages)
        if text.startswith(prompt + self._opening):
            prompt += self._opening
        if not text.startswith(prompt) or not text.endswith(self._suffix):
            raise ModelError(
                "the chat template writes an answer in a way that generation could never produce",
                where="the tokenizer's chat template",
                fix="choose a model whose answers continue the template's generation prompt",
            )
        return _Turn(
            text, len(prompt), len(text) - len(self._suffix) + self._suffix.index(self._eot) + len(self._eot)
        )

    def _labelled(self, draft: _Draft, known: Mapping[str, list[int]]) -> Encoded:
        # Spans are located by tokenising prefixes, not by offsets: those are empty for trimmed
        # spaces and equal for the several tokens of one character.
        ids, heads = known[draft.text], [known[prompt] for prompt in _prompts(draft)]
        ends = self._ends(draft, ids)
        if ends and all(ids[: len(head)] == head for head in heads):
            return _masked(ids, [len(head) for head in heads], ends)
        heads = [self._ids(draft.text[:cut]) for cut in draft.cuts]
        if any(ids[: len(head)] != head for head in heads):
            ids, heads = self._cut_tokens(draft.text, draft.cuts, ids)
        borders = [_common(ids, head) for head in heads]
        return _masked(ids, borders[::2], borders[1::2])

    def _ends(self, draft: _Draft, ids: list[int]) -> list[int]:
        """Return where each answer ends among the tokens; nothing if they do not tell.

        The end-of-turn text is one token wherever it stands, so that counting it saves tokenising once
        more all that comes before it.
        """
        places = [place for place, token in enumerate(ids) if token == self._eot_id]
        if len(places) != draft.text.count(self._eot):
            return []
        return [places[draft.text.count(self._eot, 0, cut) - 1] + 1 for cut in draft.cuts[1::2]]

    def _cut_tokens(self, text: str, cuts: list[int], whole: list[int]) -> tuple[list[int], list[list[int]]]:
        # A token reaches across the border of an answer. Generation starts from the prompt's own
        # tokens, so training should too, if the pieces still spell the same text.
        ends = [0, *cuts, len(text)]
        pieces = self._tokenise([text[a:b] for a, b in itertools.pairwise(ends)])
        pieces[0] = self._ids(text[: cuts[0]])
        joined = [token for piece in pieces for token in piece]
        if self.tokenizer.decode(joined) == self.tokenizer.decode(whole):
            sizes = [sum(len(piece) for piece in pieces[: n + 1]) for n in range(len(cuts))]
            return joined, [joined[:size] for size in sizes]
        return whole, [self._ids(text[:cut]) for cut in cuts]

    def _ids(self, text: str) -> list[int]:
        return self._with_bos(self._tokenise([text])[0])

    def _with_bos(self, ids: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if bos is None:
            return ids
        first = next((place for place, token in enumerate(ids) if token != bos), len(ids))
        return [bos, *ids[first:]]

    def _tokenise(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, without added special tokens; no token reaches across a cut."""
        return encode_cut(texts, self._encode)

    def _encode(self, texts: list[str]) -> list[list[int]]:
        # As a call of the tokenizer, but on all cores.
        backend = self.tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        return [item.ids for item in backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _spoken(self, messages: Sequence[Message]) -> list[Message]:
        return list(messages) if needs(messages) <= self._writes else flattened(messages)

    def _fitting(self, messages: Sequence[Message]) -> list[Message]:
        return folded(messages) if self.folds_system else list(messages)

    def _apply(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        text = self.tokenizer.apply_chat_template(
            self._control.cut_turns(wire(messages)),
            chat_template=self.template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
        )
        return str(text)

    def _can_write(self, need: str) -> bool:
        """Tell whether the template writes a kind of tool turn, loses nothing, and ends it as any answer."""
        messages = probe(need)
        try:
            turns = [
                self._turn(messages[: i + 1]) for i, turn in enumerate(messages) if turn.role == "assistant"
            ]
        except (ModelError, *_REFUSALS):
            return False
        return all(turns[-1].text.count(text) >= times for text, times in probe_texts(need).items())

    def _takes_system(self) -> bool:
        # Some templates raise on a system turn, others drop it once an answer follows.
        turns = [Message(role="system", content=SYSTEM), Message(role="user", content=QUESTION)]
        try:
            prompt = self._apply(turns, True)
            text = self._apply([*turns, Message(role="assistant", content=ANSWER)], False)
        except TemplateError:
            return False
        return SYSTEM in prompt and text.startswith(prompt)

    def _derive_end_of_turn(self) -> tuple[str, str]:
        _, found, suffix = self._write(ANSWERED).rpartition(ANSWER)
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


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    if left[: len(right)] == right:
        return len(right)
    pairs = enumerate(zip(left, right, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(left), len(right)))


def _prompts(draft: _Draft) -> list[str]:
    return [draft.text[:cut] for cut in draft.cuts[::2]]


def _masked(ids: list[int], starts: Sequence[int], ends: Sequence[int]) -> Encoded:
    labels = [IGNORE_INDEX] * len(ids)
    for start, end in zip(starts, ends, strict=True):
        labels[start:end] = ids[start:end]
    return Encoded(list(ids), labels)


def _windows(ids: list[int], max_length: int) -> list[Encoded]:
    step = max(1, max_length - 1)
    starts = range(0, max(1, len(ids) - 1), step)
    windows = (ids[start : start + step + 1] for start in starts)
    return [Encoded(window, [IGNORE_INDEX, *window[1:]]) for window in windows]
