"""4-bit weights of whole layers expanded for good, and let go of again."""

from core.kernels.lora_linear.group import at_home
from core.models.fused.sites import GROUPS, Home, Site, addresses


def unpacked(site: Site) -> dict[str, Home]:
    """Expand a layer's 4-bit weights for good, so that no pass has to do it again."""
    found = {}
    for name, group in zip(GROUPS, site.groups, strict=True):
        where = addresses(group)
        if where and group.home is None:
            group.home = at_home(group.projections, group.shape.dtype)
            found[name] = Home(group.home, group.shape.ranks, where)
    return found


def unpacked_bytes(site: Site) -> int:
    """Count what that takes."""
    return sum(each.shape.nbytes for each in site.groups if addresses(each) and each.home is None)


def expansion_bytes(site: Site) -> int:
    """Count what a layer's 4-bit weights take expanded, whether they are or not; 0 for weights of 16 bits."""
    return sum(each.shape.nbytes for each in site.groups if addresses(each))


def held_bytes(homes: dict[tuple[int, str], Home]) -> int:
    """Count what 4-bit weights that are expanded take."""
    return sum(home.matrix.nbytes for home in homes.values() if home.packed)


def pack(sites: dict[int, Site], homes: dict[tuple[int, str], Home], first: int = 0) -> bool:
    """Let go of expanded 4-bit weights, but those of the first layers.

    Args:
        sites: The layers, read with these homes.
        homes: By layer and group; what is let go of is taken out.
        first: Layers whose weights stay.

    Returns:
        Whether anything was let go of.
    """
    stay = set(list(sites)[:first])
    gone = [key for key, home in homes.items() if home.packed and key[0] not in stay]
    for key in gone:
        del homes[key]
    for index, site in sites.items():
        for group in site.groups:
            if index not in stay and addresses(group):
                group.home = None
    return bool(gone)


def unpack(sites: dict[int, Site], homes: dict[tuple[int, str], Home], first: int) -> None:
    """Expand the 4-bit weights of the first layers, where they are not.

    Args:
        sites: The layers, read with these homes.
        homes: By layer and group; layer by layer what is expanded is put in, so that nothing is lost should memory
            run out half way.
        first: Layers.
    """
    for index, site in list(sites.items())[:first]:
        homes |= {(index, name): home for name, home in unpacked(site).items()}
