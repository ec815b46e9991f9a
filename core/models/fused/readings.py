"""Layers as they were read, and read anew only where something has changed."""

from operator import is_
from typing import Any, NamedTuple

import torch
from torch import nn

from core.models.fused.sites import GROUPS, Home, Homes, Site, read_site
from core.models.fused.watch import Watch


class Reading(NamedTuple):
    """A layer as it was read."""

    dtype: torch.dtype
    is_training: bool | None
    homes: tuple[Home | None, ...]
    """Of its groups."""
    watch: Watch
    site: Site


class Readings:
    """Remembers descriptions of a model's layers."""

    def __init__(self) -> None:
        self._known: dict[int, Reading] = {}

    def forget(self) -> None:
        """Let go of the descriptions, and of the matrices that they hold."""
        self._known.clear()

    def read(
        self,
        layer: nn.Module,
        settings: Any,
        index: int,
        dtype: torch.dtype,
        homes: Homes,
        is_training: bool | None,
    ) -> Site:
        """Describe a layer as it is now; see ``read_site``.

        Raises:
            Unsupported: If it does anything that the fused function does not.
        """
        held = tuple(homes.get((index, name)) for name in GROUPS)
        known = self._known.get(index)
        if known and (known.dtype, known.is_training) == (dtype, is_training):
            if all(map(is_, known.homes, held)) and known.watch.holds():
                return known.site
            del self._known[index]
        # Looked at first: what changes while it is read makes the reading old.
        watch = Watch(layer)
        site = read_site(layer, settings, index, dtype, homes, is_training=is_training)
        self._known[index] = Reading(dtype, is_training, held, watch, site)
        return site
