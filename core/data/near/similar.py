"""The search for similar texts among more of them than fit in memory."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from scipy.sparse import csr_matrix

from core.data.near.bands import BANDS, band_keys
from core.data.near.candidates import candidate_pairs
from core.data.near.shingles import I64, Shingles, Texts, shingle
from core.data.workers import Workers

TextJob = Any
"""Whatever ``read`` takes to give some of the texts; small, since it travels to the workers."""
_BLOCK = 1 << 22
"""Members of the sets that are compared at once."""

Read = Callable[[TextJob], Texts]


class Similar(NamedTuple):
    """Pairs of texts, by their numbers over all jobs."""

    left: I64
    """[pairs]; the smaller number."""
    right: I64
    similarity: npt.NDArray[np.float64]
    """Jaccard similarity of the two sets of word sequences."""

    def only(self, rows: npt.NDArray[np.bool_]) -> "Similar":
        """Return the pairs of which both texts are among these rows."""
        inside = rows[self.left] & rows[self.right]
        return Similar(self.left[inside], self.right[inside], self.similarity[inside])


class _Signed(NamedTuple):
    """What is left on disk of one job's texts."""

    path: Path
    rows: int


def find_similar(
    jobs: Sequence[TextJob],
    read: Read,
    *,
    threshold: float,
    workers: Workers,
    scratch: Path,
    seed: int = 0,
    numbers_matter: bool = True,
    advanced: Callable[[int, int], None] = lambda done, total: None,
) -> Similar:
    """Find pairs of texts whose sets of three-word sequences have at least this Jaccard similarity.

    Every pair returned is similar, by counting; a pair at the threshold 0.8 is missed with a probability of
    about 5 in 100,000 (see ``bands``). Memory: 8 bytes a text and band key read, plus the candidates.

    Args:
        jobs: Parts of the texts; text numbers run through them in order.
        read: Gives a job's texts; runs in the workers, so a function of a module or a partial of one.
        threshold: Smallest similarity.
        workers: Where texts are read and signed.
        scratch: Existing folder for band keys, 200 bytes a text.
        seed: Picks the hash functions.
        numbers_matter: Short texts with different numbers are different, see ``shingles``.
        advanced: Told how many jobs of how many are done.
    """
    sign = functools.partial(_sign, read, scratch, seed, numbers_matter)
    signed = []
    for part in workers.map(sign, list(enumerate(jobs))):
        signed.append(part)
        advanced(len(signed), 2 * len(jobs))
    firsts = np.concatenate([[0], np.cumsum([part.rows for part in signed])]).astype(np.int64)
    total = int(firsts[-1])
    pairs = _candidates(signed, total)
    left, right = pairs // max(total, 1), pairs % max(total, 1)
    involved = np.unique(np.concatenate([left, right]))
    sets = _shingles_of(involved, jobs, firsts, read, workers, scratch)
    places = np.searchsorted(involved, left), np.searchsorted(involved, right)
    similarity = _similarities(sets, *places)
    good = similarity >= threshold - 1e-9
    return Similar(left[good], right[good], similarity[good])


def _sign(read: Read, scratch: Path, seed: int, numbers_matter: bool, job: tuple[int, TextJob]) -> _Signed:
    number, texts = job[0], read(job[1])
    path = scratch / f"bands-{number:06d}.npy"
    np.save(path, band_keys(shingle(texts), seed, numbers_matter=numbers_matter))
    return _Signed(path, len(texts.texts))


def _candidates(signed: Sequence[_Signed], total: int) -> I64:
    files = [np.load(part.path, mmap_mode="r") for part in signed]
    if total < 2:
        return np.zeros(0, np.int64)
    first = _representatives(files)
    rows = np.flatnonzero(first == np.arange(total))
    # Texts that agree in every band are as good as equal: each meets the first of them and no other.
    twins = np.flatnonzero(first != np.arange(total))
    found = np.unique(first[twins] * total + twins)
    for band in range(BANDS):
        keys = np.concatenate([file[band] for file in files])[rows]
        found = np.union1d(found, candidate_pairs(keys, rows, total))
    return found


def _representatives(files: Sequence[npt.NDArray[np.uint64]]) -> I64:
    total = sum(file.shape[1] for file in files)
    whole = np.zeros(total, np.uint64)
    for band in range(BANDS):
        keys = np.concatenate([file[band] for file in files])
        whole = (whole ^ keys) * np.uint64(0xD6E8FEB86659FD93)
        whole ^= whole >> np.uint64(32)
    _, first, code = np.unique(whole, return_index=True, return_inverse=True)
    representatives: I64 = first[code].astype(np.int64)
    return representatives


def _shingles_of(
    involved: I64, jobs: Sequence[TextJob], firsts: I64, read: Read, workers: Workers, scratch: Path
) -> Shingles:
    wanted = [
        (
            number,
            job,
            involved[(involved >= firsts[number]) & (involved < firsts[number + 1])] - firsts[number],
        )
        for number, job in enumerate(jobs)
    ]
    some = functools.partial(_shingle_some, read, scratch)
    parts = list(workers.map(some, [item for item in wanted if len(item[2])]))
    loaded = [Shingles(**np.load(path)) for path in parts]
    if not loaded:
        return Shingles(np.zeros(0, np.uint64), np.zeros(1, np.int64), np.zeros(0, np.uint64))
    lengths = np.concatenate([np.diff(part.offsets) for part in loaded])
    return Shingles(
        np.concatenate([part.hashes for part in loaded]),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        np.concatenate([part.numbers for part in loaded]),
    )


def _shingle_some(read: Read, scratch: Path, job: tuple[int, TextJob, I64]) -> Path:
    number, part, rows = job
    path = scratch / f"sets-{number:06d}.npz"
    texts, salts = read(part)
    some = Texts(texts.take(pa.array(rows)), None if salts is None else salts[rows])
    np.savez(path, **shingle(some)._asdict())
    return path


def _similarities(sets: Shingles, left: I64, right: I64) -> npt.NDArray[np.float64]:
    sizes = np.diff(sets.offsets)
    _, columns = np.unique(sets.hashes, return_inverse=True)
    shape = (sets.rows, int(columns.max(initial=0)) + 1)
    table = csr_matrix((np.ones(len(columns), np.int32), columns, sets.offsets), shape=shape)
    result = np.zeros(len(left))
    # Long texts have large sets: what bounds memory is their members, not the number of pairs.
    members = np.cumsum(sizes[left] + sizes[right])
    cuts = np.searchsorted(members, np.arange(_BLOCK, members[-1] if len(members) else 0, _BLOCK))
    for block in np.split(np.arange(len(left)), np.unique(cuts)):
        a, b = left[block], right[block]
        common = np.asarray(table[a].multiply(table[b]).sum(axis=1)).ravel()
        result[block] = common / (sizes[a] + sizes[b] - common)
    return result


def doubles(similar: Similar) -> dict[int, int]:
    """Return rows to drop, each with the kept row it resembles: the first of its kind stays.

    Not transitive: a row goes only if it resembles one that stays.
    """
    order = np.lexsort((similar.left, similar.right))
    dropped: dict[int, int] = {}
    for left, right in zip(similar.left[order].tolist(), similar.right[order].tolist(), strict=True):
        if right not in dropped and left not in dropped:
            dropped[right] = left
    return dropped
