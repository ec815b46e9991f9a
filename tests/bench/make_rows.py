"""Write a million varied rows with known duplicates, near-duplicates, broken rows and personal data.

    python -m tests.bench.make_rows /tmp/rows --rows 1000000

The same arguments give the same bytes. The folder then holds ``rows/part-*.jsonl`` (what a user would have),
``texts/part-*.jsonl`` ({"id", "text"}, the usable rows again for tools that read plain text), ``truth.jsonl``
(every planted pair with its word-3-gram Jaccard similarity) and ``summary.json``.
"""

import argparse
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tests.bench.vocabulary import LANGUAGES, Language

BLOCK = 50_000
SHARES = {"exact": 0.03, "near": 0.05, "broken": 0.01, "pii": 0.005}
SLOT = re.compile(r"\{(\w+)\}")
WORD = re.compile(r"\w+")


class Planned(NamedTuple):
    """What every row will be."""

    kind: np.ndarray
    """[rows] index into ``KINDS``."""
    of: np.ndarray
    """[rows] the earlier row that an exact or near-duplicate is made from, otherwise -1."""


class Texts(NamedTuple):
    """Questions and answers of some rows."""

    questions: list[str]
    answers: list[str]
    language: np.ndarray
    topic: list[str]


KINDS = ("plain", "exact", "near", "broken", "pii")
BROKEN = ("cut", "no answer", "empty answer", "number", "list", "unknown shape")


def plan(rows: int, seed: int) -> Planned:
    """Decide which rows are planted and what they copy; the first rows are always plain."""
    rng = np.random.default_rng([seed, 0])
    shares = [1 - sum(SHARES.values()), *SHARES.values()]
    kind = rng.choice(len(KINDS), size=rows, p=shares).astype(np.int8)
    kind[: min(rows, 20)] = 0
    plain = np.flatnonzero(kind == 0)
    copies = np.flatnonzero((kind == 1) | (kind == 2))
    before = np.searchsorted(plain, copies)
    picks = plain[(rng.random(len(copies)) * before).astype(np.int64)]
    # Some rows are copied several times, as in real corpora.
    again = rng.random(len(copies)) < 0.2
    for place in np.flatnonzero(again)[1:]:
        picks[place] = picks[place - 1]
    of = np.full(rows, -1, dtype=np.int64)
    of[copies] = picks
    return Planned(kind, of)


def texts_of_block(block: int, size: int, seed: int) -> Texts:
    """Make the own texts of the rows of one block."""
    rng = np.random.default_rng([seed, 1, block])
    names = list(LANGUAGES)
    language = rng.choice(len(names), size=size, p=[LANGUAGES[name].share for name in names])
    topic = rng.integers(0, 1 << 30, size=size)
    for number, name in enumerate(names):
        here = language == number
        topic[here] %= len(LANGUAGES[name].topics)
    counts = np.clip(np.round(rng.lognormal(1.15, 0.6, size)), 1, 15).astype(np.int64)
    questions = _sentences(rng, language, topic, "questions")
    rows = np.repeat(np.arange(size), counts)
    sentences = _sentences(rng, language[rows], topic[rows], "sentences")
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    answers = pc.binary_join(pa.ListArray.from_arrays(offsets, sentences), " ")
    topics = [list(LANGUAGES[names[lang]].topics)[place] for lang, place in zip(language, topic, strict=True)]
    return Texts(questions.to_pylist(), answers.to_pylist(), language, topics)


def _sentences(rng: np.random.Generator, language: np.ndarray, topic: np.ndarray, which: str) -> pa.Array:
    """Return one sentence for every element of language and topic."""
    parts, places = [], []
    for number, name in enumerate(LANGUAGES):
        here = np.flatnonzero(language == number)
        patterns = getattr(LANGUAGES[name], which)
        chosen = rng.integers(0, len(patterns), size=len(here))
        for place, pattern in enumerate(patterns):
            rows = here[chosen == place]
            parts.append(_filled(rng, pattern, LANGUAGES[name], topic[rows]))
            places.append(rows)
    order = np.argsort(np.concatenate(places), kind="stable")
    return pa.concat_arrays(parts).take(pa.array(order))


def _filled(rng: np.random.Generator, pattern: str, language: Language, topic: np.ndarray) -> pa.Array:
    pieces: list[pa.Array | str] = []
    for place, piece in enumerate(SLOT.split(pattern)):
        if place % 2 == 0:
            pieces.append(piece)
        else:
            words = _drawn(rng, piece, language, topic)
            pieces.append(_capital(words) if len(pieces) == 1 and not pieces[0] else words)
    if not len(topic):
        return pa.array([], pa.string())
    return pc.binary_join_element_wise(*pieces, "")


def _drawn(rng: np.random.Generator, slot: str, language: Language, topic: np.ndarray) -> pa.Array:
    lists = [slots.get(slot, []) for slots in language.topics.values()]
    if not any(lists):
        lists = [language.slots[slot]] * len(lists)
    sizes = np.array([len(words) for words in lists])
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    # Words early in a list are drawn more often, as in any language.
    skewed = rng.random(len(topic)) ** 1.3
    index = starts[topic] + (skewed * sizes[topic]).astype(np.int64)
    return pa.array([word for words in lists for word in words]).take(pa.array(index))


def _capital(words: pa.Array) -> pa.Array:
    first = pc.utf8_upper(pc.utf8_slice_codeunits(words, 0, 1))
    return pc.binary_join_element_wise(first, pc.utf8_slice_codeunits(words, 1, None), "")


def shingles(text: str) -> set[tuple[str, ...]]:
    """Return the word-3-grams of a text, case folded and without punctuation; a short text is one gram."""
    words = WORD.findall(text.casefold())
    if len(words) < 3:
        return {tuple(words)} if words else set()
    return set(zip(words, words[1:], words[2:], strict=False))


def jaccard(one: str, other: str) -> float:
    """Return the share of word-3-grams that two texts have in common."""
    first, second = shingles(one), shingles(other)
    return len(first & second) / max(1, len(first | second))


def near_copy(rng: np.random.Generator, question: str, answer: str, nouns: list[str]) -> tuple[str, str]:
    """Return a copy with words replaced, inserted and deleted, about as many as a wished similarity takes."""
    wished = rng.uniform(0.5, 1)
    words = question.split(" ") + answer.split(" ")
    border = len(question.split(" "))
    edits = max(1, round(len(words) * (1 - wished) / (3 * (1 + wished))))
    if rng.random() < 0.3:
        start = int(rng.integers(0, max(1, len(words) - 3 * edits)))
        places = list(range(start, min(len(words), start + 3 * edits)))  # one passage rewritten
    else:
        places = sorted(rng.choice(len(words), size=min(edits, len(words)), replace=False).tolist())
    for place in reversed(places):
        border += _edit(words, place, int(rng.integers(0, 4)), str(rng.choice(nouns)), border)
    return " ".join(words[:border]) or "?", " ".join(words[border:]) or "."


def _edit(words: list[str], place: int, how: int, word: str, border: int) -> int:
    """Change one word; return by how many places the border between question and answer moves."""
    shift = 1 if place < border else 0
    if how == 0:
        words.insert(place, word)
        return shift
    if how == 1 and len(words) > 12:
        del words[place]
        return -shift
    tail = words[place][-1] if words[place][-1:] in ".,?:;" else ""
    words[place] = word + tail
    return 0


def exact_copy(rng: np.random.Generator, text: str) -> str:
    """Return the text, half of the time with other case or whitespace."""
    how = int(rng.integers(0, 8))
    changed = {
        0: text.upper(),
        1: text.lower(),
        2: text.replace(" ", "  "),
        3: f"  {text}\n",
    }
    return changed.get(how, text)


def personal(rng: np.random.Generator) -> str:
    """Return a sentence with something that should not be in training data; nobody it belongs to exists."""
    number = int(rng.integers(0, 10**9))
    kinds = [
        f" Write to pupil{number}@example.org today.",
        f" Call +233 24 {number % 1000:03d} {number // 1000 % 10000:04d} now.",
        f" The card is {_card(number)} for that.",
        f" The key is sk-{number:09d}AbCdEfGhIjKlMnOpQrStUvWxYz{number:09d}.",
    ]
    return kinds[int(rng.integers(0, len(kinds)))]


def _card(number: int) -> str:
    digits = [int(digit) for digit in f"400000{number:09d}"]
    doubled = [sum(divmod(2 * digit, 10)) if place % 2 == 0 else digit for place, digit in enumerate(digits)]
    return "".join(map(str, digits)) + str(-sum(doubled) % 10)


class Maker:
    """Makes the rows of one data set, block by block; keeps only the texts that later rows copy."""

    def __init__(self, rows: int, seed: int) -> None:
        self.rows, self.seed = rows, seed
        self.planned = plan(rows, seed)
        self.wanted = set(self.planned.of[self.planned.of >= 0].tolist())
        self.sources: dict[int, tuple[str, str, dict[str, str]]] = {}
        self.counts: Counter[str] = Counter()
        self.truth: list[dict[str, object]] = []
        self.words = 0
        self._nouns = {
            name: sorted(
                {word for slots in language.topics.values() for word in slots.get("noun", [])}
                | set(language.slots.get("noun", []))
            )
            for name, language in LANGUAGES.items()
        }

    def blocks(self) -> Iterator[tuple[list[str], list[str]]]:
        """Yield the lines of rows and of texts, block by block."""
        for block, start in enumerate(range(0, self.rows, BLOCK)):
            size = min(BLOCK, self.rows - start)
            yield self._block(block, start, texts_of_block(block, size, self.seed))

    def _block(self, block: int, start: int, texts: Texts) -> tuple[list[str], list[str]]:
        rng = np.random.default_rng([self.seed, 2, block])
        shapes = rng.choice(3, size=len(texts.questions), p=[0.5, 0.25, 0.25]).tolist()
        names = list(LANGUAGES)
        rows, plain = [], []
        for place, (question, answer) in enumerate(zip(texts.questions, texts.answers, strict=True)):
            number = start + place
            more = {"lang": names[texts.language[place]], "topic": texts.topic[place]}
            kind = KINDS[self.planned.kind[number]]
            self.counts[kind] += 1
            if number in self.wanted:
                self.sources[number] = (question, answer, more)
            if kind in ("exact", "near"):
                question, answer, more = self._copy(rng, number, kind)
            elif kind == "pii":
                answer += personal(rng)
            if kind == "broken":
                rows.append(self._broken(rng, number, question, answer))
                continue
            rows.append(_row(shapes[place], number, question, answer, more))
            text = f"{question}\n{answer}"
            self.words += text.count(" ") + 2
            plain.append(_json({"id": str(number), "text": text}))
        return rows, plain

    def _copy(self, rng: np.random.Generator, number: int, kind: str) -> tuple[str, str, dict[str, str]]:
        source = int(self.planned.of[number])
        question, answer, more = self.sources[source]
        if kind == "exact":
            copied = exact_copy(rng, question), exact_copy(rng, answer)
        else:
            copied = near_copy(rng, question, answer, self._nouns[more["lang"]])
        similarity = jaccard(f"{question}\n{answer}", "\n".join(copied))
        self.truth.append({"row": number, "of": source, "kind": kind, "jaccard": round(similarity, 4)})
        return *copied, more

    def _broken(self, rng: np.random.Generator, number: int, question: str, answer: str) -> str:
        how = BROKEN[int(rng.integers(0, len(BROKEN)))]
        self.counts[f"broken: {how}"] += 1
        whole = {"id": f"r{number}", "instruction": question, "input": "", "output": answer}
        lines = {
            "cut": _json(whole)[: 10 + len(question) // 2],
            "no answer": _json({"id": f"r{number}", "messages": [{"role": "user", "content": question}]}),
            "empty answer": _json(whole | {"output": " "}),
            "number": _json(whole | {"output": number}),
            "list": _json([question, answer]),
            "unknown shape": _json({"left": question, "right": answer}),
        }
        return lines[how]


def _row(shape: int, number: int, question: str, answer: str, more: dict[str, str]) -> str:
    row: dict[str, object] = {"id": f"r{number}"}
    if shape == 0:
        row |= {"instruction": question, "input": "", "output": answer}
    elif shape == 1:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        row |= {"messages": turns}
    else:
        row |= {"prompt": question, "completion": answer}
    return _json(row | more)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def write(folder: Path, rows: int, seed: int) -> dict[str, object]:
    """Write all files; return the summary."""
    maker = Maker(rows, seed)
    for name in ("rows", "texts"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, (lines, plain) in enumerate(maker.blocks()):
        for name, content in (("rows", lines), ("texts", plain)):
            (folder / name / f"part-{number:03d}.jsonl").write_text(
                "\n".join(content) + "\n", encoding="utf-8"
            )
    with (folder / "truth.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(_json(pair) + "\n" for pair in maker.truth)
    usable = rows - maker.counts["broken"]
    summary = {
        "rows": rows,
        "seed": seed,
        "words_per_row": round(maker.words / max(1, usable), 1),
        "counts": dict(sorted(maker.counts.items())),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def main() -> None:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=3407)
    given = parser.parse_args()
    started = time.perf_counter()
    print(json.dumps(write(given.folder, given.rows, given.seed)))
    print(f"{time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    main()
