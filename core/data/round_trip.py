"""Do the tokens lead back to the text, and does training start where serving starts?

Nothing here asks how the mask was made: the tokens are decoded and held against what the template renders.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from core.data.chat import IGNORE_INDEX, ChatTokenizer, Encoded
from core.data.learning_reports import RoundTrip
from core.data.records import Conversation
from core.data.token_text import TokenText
from core.errors import ModelError

_EXCERPT = 40


class EncodedRow(NamedTuple):
    """A conversation and its training examples."""

    row: Conversation
    examples: list[Encoded]


class _Failures(NamedTuple):
    """What is wrong with one row, empty where nothing is."""

    text: str = ""
    answer: str = ""
    prompt: str = ""


def check_round_trip(rows: Sequence[EncodedRow], chat: ChatTokenizer) -> RoundTrip:
    """Decode training examples and compare them with the rendered conversations.

    Args:
        rows: Conversations with their examples, before any cut.
        chat: Tokenizer and template.

    Returns:
        Counts of rows that fail, and the first failure in words.
    """
    checker = _Checker(chat)
    found = [(row.row.id, checker.check(row)) for row in rows]
    first = next((f"row {name}: {why}" for name, each in found for why in each if why), "")
    return RoundTrip(
        checked=len(found),
        text_failures=sum(bool(each.text) for _, each in found),
        answer_failures=sum(bool(each.answer) for _, each in found),
        prompt_failures=sum(bool(each.prompt) for _, each in found),
        first=first,
    )


class _Checker:
    """Compares the rows of one tokenizer."""

    def __init__(self, chat: ChatTokenizer) -> None:
        self.chat = chat
        added = list(chat.tokenizer.added_tokens_decoder.values())
        specials = {str(t) for t in added if t.special}
        specials |= set(chat.tokenizer.all_special_tokens)
        self.special = _either(specials)
        self.swallows_before = _either(token for token in added if token.lstrip)
        swallowing = [token for token in added if token.rstrip]
        self.swallows_after, self.opens_bare = _either(swallowing), bool(swallowing)
        self.has_soft_spaces = TokenText(chat.tokenizer).has_soft_spaces

    def check(self, row: EncodedRow) -> _Failures:
        answered = [n for n, turn in enumerate(row.row.messages) if turn.role == "assistant"]
        try:
            turns = [self._turn(row.row, n) for n in answered]
            prompt = self.chat.prompt_ids(row.row.messages)
        except ModelError as error:
            return _Failures(text=error.what)
        texts = [turns[-1]] if len(row.examples) == 1 else turns
        return _Failures(
            next(self._wrong_texts(row.examples, [prompt + answer for prompt, answer in texts]), ""),
            self._wrong_answer(row, [answer for _, answer in turns], answered),
            self._wrong_prompt(row.examples[-1].input_ids, prompt),
        )

    def _turn(self, row: Conversation, place: int) -> tuple[str, str]:
        """Return a turn's prompt and what follows it, as the template writes them."""
        return self.chat.parts(row.messages[: place + 1])

    def _wrong_texts(self, examples: Sequence[Encoded], texts: Sequence[str]) -> Iterator[str]:
        if len(examples) != len(texts):
            yield f"{len(texts)} answers make {len(examples)} examples"
        for example, text in zip(examples, texts, strict=False):
            got, wanted = self._level(self._decode(example.input_ids)), self._level(text)
            if got != wanted:
                yield f"its tokens spell {_difference(got, wanted)}"

    def _wrong_answer(self, row: EncodedRow, answers: list[str], answered: list[int]) -> str:
        runs = [run for example in row.examples for run in trained_runs(example)]
        if len(runs) != len(answers):
            return f"{len(answers)} answers, but {len(runs)} stretches of trained tokens"
        for run, answer, place in zip(runs, answers, answered, strict=True):
            said = row.row.messages[place].content
            got, wanted = self._level(self._decode(run)), self._level(answer)
            wanted = wanted.lstrip() if self.opens_bare else wanted
            # After the trained tokens only the template's own closing may follow.
            left = re.sub(self.special, "", wanted.removeprefix(got)).strip()
            if not wanted.startswith(got) or left or self._level(_even(said)) not in got:
                return f"the trained tokens spell {_difference(got, wanted)}"
        return ""

    def _wrong_prompt(self, ids: list[int], prompt: list[int]) -> str:
        if ids[: len(prompt)] == prompt:
            return ""
        got, wanted = self._decode(ids[: len(prompt)]), self._decode(prompt)
        return f"training starts {_difference(got, wanted)} in serving"

    def _decode(self, ids: Sequence[int]) -> str:
        text = self.chat.tokenizer.decode(
            list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _level(self, text: str) -> str:
        """Take away what may differ: tokens of beginning, soft spaces, Unicode composition."""
        bos = self.chat.tokenizer.bos_token
        while bos and text.startswith(str(bos)):
            text = text.removeprefix(str(bos))
        # Phi's control tokens swallow the white space beside them.
        text = re.sub(rf"\s+({self.swallows_before})", r"\1", text)
        text = re.sub(rf"({self.swallows_after})\s+", r"\1", text)
        if self.has_soft_spaces:
            text = re.sub(rf"(^|{self.special}) +", r"\1", text)
        return unicodedata.normalize("NFC", text)


def trained_runs(example: Encoded) -> list[list[int]]:
    """Return the stretches of trained tokens of an example."""
    runs: list[list[int]] = []
    before = IGNORE_INDEX
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if label != IGNORE_INDEX:
            if before == IGNORE_INDEX:
                runs.append([])
            runs[-1].append(token)
        before = label
    return runs


def _either(tokens: Iterable[object]) -> str:
    longest_first = sorted(map(str, tokens), key=len, reverse=True)
    return "|".join(map(re.escape, longest_first)) or r"(?!)"


def _even(text: str) -> str:
    """Return an answer's words as a template may write them: trimmed."""
    return unicodedata.normalize("NFC", text.strip())


def _difference(got: str, wanted: str) -> str:
    pairs = enumerate(zip(got, wanted, strict=False))
    place = next((n for n, (a, b) in pairs if a != b), min(len(got), len(wanted)))
    start = max(0, place - _EXCERPT // 2)
    return f"{got[start : start + _EXCERPT]!r} instead of {wanted[start : start + _EXCERPT]!r}"
