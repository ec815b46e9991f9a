"""A name for every row, and no name twice."""

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from core.data.columns import repeated


def unique_ids(
    proposed: pa.ChunkedArray, keys: pa.ChunkedArray, kept: npt.NDArray[np.bool_]
) -> dict[int, str]:
    """Return a new name for every kept row whose proposed name an earlier kept row has.

    Two sources may both number from 1; the content then tells their rows apart.

    Args:
        proposed: Each row's own id, or one made of its content.
        keys: Key of each row's content.
        kept: Rows that need a name.
    """
    rows = np.flatnonzero(kept)
    names = proposed.take(pa.array(rows))
    again = repeated(names)
    if not len(again):
        return {}
    taken = set(names.to_pylist())
    return {
        int(rows[at]): _free(f"{names[int(at)]}-{keys[int(rows[at])].as_py().hex()[:8]}", taken)
        for at in again
    }


def _free(name: str, taken: set[str]) -> str:
    copies, unique = 1, name
    while unique in taken:
        copies += 1
        unique = f"{name}-{copies}"
    taken.add(unique)
    return unique
