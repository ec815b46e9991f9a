"""What tells that a model's weights were cast, moved or replaced after it was fused."""

from typing import Any

import torch
from torch import nn

from core.models.fused.sites import GROUPS, Homes, Site, addresses, lie_in


def held(layers: nn.ModuleList) -> tuple[torch.dtype, torch.device]:
    """Return dtype and place of what goes along with every cast and move, also of a base in 4 bits: a norm."""
    layer: Any = layers[0]
    weight = layer.input_layernorm.weight
    return weight.dtype, weight.device


def strays(sites: dict[int, Site], homes: Homes) -> list[tuple[int, str]]:
    """Find extended matrices whose modules have got other weights.

    Not those that an adapter of another rank has no use for: weights still lie there.

    Args:
        sites: The layers, read with these homes.
        homes: By layer and group.
    """
    found = []
    for index, site in sites.items():
        for name, group in zip(GROUPS, site.groups, strict=True):
            home = homes.get((index, name))
            if home is None or group.home is not None:
                continue
            stays = home.packed == addresses(group) if home.packed else lie_in(home.matrix, group.projections)
            if not stays:
                found.append((index, name))
    return found
