"""Who goes where. Every function returns one number a row: 0 train, 1 val, 2 test, -1 left out."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from core.data.leakage import NAMES
from core.data.shares import apportion
from core.data.split.relatives import smallest_of
from core.data.split.rows import I64, U64
from core.errors import DataError

LEFT_OUT = -1
Places = npt.NDArray[np.int8]
Shares = Sequence[float]
"""Share of train, val and test; they sum to 1."""


class Families(NamedTuple):
    """Groups of rows that must stay on one side."""

    of: I64
    """[rows]; number of each row's family, from 0."""
    rank: U64
    """[rows]; pseudo-random by content and seed, so that neither file order nor luck decides."""


def at_random(families: Families, shares: Shares) -> Places:
    """Give each family, largest first, to the split that it brings closest to its size; single rows fill up.

    Raises:
        DataError: If a split would stay empty.
    """
    sizes = np.bincount(families.of)
    wanted = _sizes(len(families.of), shares, len(sizes))
    return _assign(families, np.arange(len(sizes)), wanted)[families.of]


def stratified(families: Families, shares: Shares, strata: Sequence[str]) -> Places:
    """Divide every stratum by the same shares; a family counts to the stratum that most of its rows have.

    What rounding gives or takes in one stratum is made up for in the next, so small strata do not bend the whole.

    Raises:
        DataError: If a split would stay empty.
    """
    total = len(families.of)
    sizes = np.bincount(families.of)
    wanted = _sizes(total, shares, len(sizes))
    stratum = _stratum_of_family(families.of, strata)
    places = np.zeros(len(sizes), np.int8)
    seen, given = 0, np.zeros(3, np.int64)
    for value in np.unique(stratum):
        members = np.flatnonzero(stratum == value)
        seen += int(sizes[members].sum())
        due = np.maximum(np.array(apportion(seen, list(shares))) - given, 0)
        places[members] = _assign(families, members, due)[members]
        given += np.bincount(places[members], weights=sizes[members], minlength=3).astype(np.int64)
    for split in np.flatnonzero(np.array(shares) > 0):
        if not (places == split).any():
            raise _empty(total, len(sizes), wanted.tolist(), int(split))
    return places[families.of]


def by_time(families: Families, shares: Shares, times: Sequence[float]) -> Places:
    """Let the oldest rows train, the next steer, the newest test; equal times stay together.

    Of a family that lies on both sides of a cut only the later rows stay.

    Raises:
        DataError: If a split would stay empty.
    """
    moment = np.asarray(times)
    order = np.argsort(moment, kind="stable")
    ordered = moment[order]
    wanted = _sizes(len(moment), shares, len(np.unique(moment)))
    places = np.zeros(len(moment), np.int8)
    for split, cut in ((1, wanted[0]), (2, wanted[0] + wanted[1])):
        if cut < len(ordered):
            # Of rows of one time all go to the later side, unless the whole split would vanish with them.
            places[moment >= ordered[cut]] = split
    return _strictest_only(places, families.of, shares)


def by_content(families: Families, shares: Shares) -> Places:
    """Let a hash of the question decide, so that a row's place does not depend on the other rows.

    Of a family that would lie on both sides only the rows of the strictest split stay: an added row can make an
    old one leave the training data, but never move it into another split.

    Raises:
        DataError: If a split would stay empty.
    """
    unit = families.rank.astype(np.float64) / 2.0**64
    places = np.searchsorted(np.cumsum(shares)[:-1], unit, side="right").astype(np.int8)
    return _strictest_only(places, families.of, shares)


def _strictest_only(places: Places, family: I64, shares: Shares) -> Places:
    strictest = np.zeros(int(family.max(initial=-1)) + 1, np.int8)
    np.maximum.at(strictest, family, places)
    kept = np.where(places == strictest[family], places, np.int8(LEFT_OUT)).astype(np.int8)
    for split, share in enumerate(shares):
        if share > 0 and not (kept == split).any():
            raise _empty(len(places), len(strictest), [share], split)
    return kept


def _stratum_of_family(family: I64, strata: Sequence[str]) -> I64:
    codes = np.unique(np.asarray(strata), return_inverse=True)[1]
    pairs, counts = np.unique(np.stack([family, codes]), axis=1, return_counts=True)
    order = np.lexsort((pairs[1], -counts, pairs[0]))
    _, first = np.unique(pairs[0][order], return_index=True)
    chosen: I64 = pairs[1][order][first]
    return chosen


def _assign(families: Families, members: I64, wanted: I64) -> Places:
    """Place some families so that the splits come close to the wanted numbers of rows."""
    sizes = np.bincount(families.of)
    rank = smallest_of(families.rank, families.of)
    order = members[np.lexsort((rank[members], -sizes[members]))]
    places = np.full(len(sizes), LEFT_OUT, np.int8)
    have = np.zeros(3, np.int64)
    large = order[sizes[order] > 1]
    for at, member in enumerate(large.tolist()):
        # The last families are kept for splits that have none yet.
        best = _closest(have, wanted, int(sizes[member]), len(order) - at)
        places[member] = best
        have[best] += sizes[member]
    _fill(places, order[sizes[order] == 1], have, wanted)
    return places


def _closest(have: I64, wanted: I64, more: int, left: int) -> int:
    asked = [split for split in range(3) if wanted[split]] or [0]
    empty = [split for split in asked if not have[split]]
    candidates = empty if empty and left <= len(empty) else asked
    return min(candidates, key=lambda split: _cost(int(have[split]), more, int(wanted[split])))


def _cost(have: int, more: int, want: int) -> tuple[int, float]:
    # First the distance that the family adds or takes away, then how empty the split still is.
    return abs(have + more - want) - abs(have - want), have / max(want, 1)


def _fill(places: Places, singles: I64, have: I64, wanted: I64) -> None:
    need = np.maximum(wanted - have, 0)
    while need.sum() > len(singles):
        need[int(np.argmax(need))] -= 1
    need[0 if wanted[0] else int(np.argmax(wanted))] += len(singles) - need.sum()
    places[singles] = np.repeat(np.arange(3, dtype=np.int8), need)


def _sizes(total: int, shares: Shares, families: int) -> I64:
    wanted = [split for split in range(3) if shares[split] > 0]
    sizes = np.zeros(3, np.int64)
    sizes[wanted] = apportion(total, [shares[split] for split in wanted])
    if (sizes[wanted] == 0).any() or families < len(wanted):
        empty = next((split for split in wanted if not sizes[split]), 2)
        raise _empty(total, families, [shares[split] for split in wanted], empty)
    return sizes


def _empty(total: int, families: int, shares: Sequence[float], split: int) -> DataError:
    name = NAMES[split]
    least = math.ceil(1 / min(share for share in shares if share > 0) - 1e-9) if max(shares) < 1 else 10
    return DataError(
        f"{total} rows in {families} groups that must stay together leave {name} empty",
        where="split",
        fix=f"give at least {least} different questions (or groups), or a larger share to split.{name}",
    )
