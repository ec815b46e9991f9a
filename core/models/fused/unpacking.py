"""4-bit weights of whole layers expanded for good, and let go of again."""

from collections import deque
from collections.abc import Hashable

from core.kernels.lora_linear.group import at_home
from core.models.fused.sites import GROUPS, Home, Site, addresses

CALM = 32
"""Passes that must all have room for what stays expanded; to expand a layer takes what one or two passes then save."""


class Turns:
    """How many first layers stay expanded where batches of several sizes take turns."""

    def __init__(self) -> None:
        """Begin before the first pass."""
        self._lately: deque[int] = deque(maxlen=CALM)
        self.in_force: tuple[int, Hashable] | None = None
        """Layers that are expanded, and for which adapters; None if that is not known."""

    def forget(self) -> None:
        """Begin anew; what is expanded stays so until the next pass."""
        self._lately.clear()

    def wanted(self, room_for: int) -> int:
        """Return the layers that this pass and the last ones all have room for; less room counts at once.

        Args:
            room_for: Layers that this pass's plan has room for.
        """
        self._lately.append(room_for)
        return min(self._lately)


def expansion_bytes(site: Site) -> int:
    """Count what a layer's 4-bit weights take expanded, whether they are or not; 0 for weights of 16 bits."""
    return sum(each.shape.nbytes for each in site.groups if addresses(each))


def expansions(sites: dict[int, Site]) -> tuple[int, ...]:
    """Return ``expansion_bytes`` by layer."""
    return tuple(map(expansion_bytes, sites.values()))


def ranks_by_layer(sites: dict[int, Site]) -> Hashable:
    """Say which layers there are and what adapters they have: others need other matrices, and another plan."""
    return tuple((index, *(group.shape.ranks for group in site.groups)) for index, site in sites.items())


def held_bytes(homes: dict[tuple[int, str], Home]) -> int:
    """Count what 4-bit weights that are expanded take."""
    return sum(home.matrix.nbytes for home in homes.values() if home.packed)


def pack(sites: dict[int, Site], homes: dict[tuple[int, str], Home], first: int = 0) -> bool:
    """Let go of expanded 4-bit weights, but those of the first layers that fit their adapters.

    Args:
        sites: The layers, read with these homes.
        homes: By layer and group; what is let go of is taken out.
        first: Layers whose weights stay.

    Returns:
        Whether anything was let go of.
    """
    stay: set[tuple[int, str]] = set()
    for number, (index, site) in enumerate(sites.items()):
        for name, group in zip(GROUPS, site.groups, strict=True):
            if number < first and group.home is not None:
                stay.add((index, name))
            elif addresses(group):
                group.home = None
    gone = [key for key, home in homes.items() if home.packed and key not in stay]
    for key in gone:
        del homes[key]
    return bool(gone)


def unpack(sites: dict[int, Site], homes: dict[tuple[int, str], Home], first: int) -> None:
    """Expand the 4-bit weights of the first layers, where they are not.

    Args:
        sites: The layers, read with these homes.
        homes: By layer and group; one by one what is expanded is put in, so that nothing is lost should memory run
            out half way.
        first: Layers.
    """
    for index, site in list(sites.items())[:first]:
        for name, group in zip(GROUPS, site.groups, strict=True):
            where = addresses(group)
            if where and group.home is None:
                group.home = at_home(group.projections, group.shape.dtype)
                homes[index, name] = Home(group.home, group.shape.ranks, where)
