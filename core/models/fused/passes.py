"""What the layers share while a batch runs through them and back."""

import itertools
from typing import NamedTuple

from torch import Tensor

from core.kernels.attention import Chooser, Documents
from core.kernels.lora_linear import Group, Scratch
from core.models.fused.gathering import Gathering
from core.models.fused.policy import Policy
from core.models.fused.sites import Norm, Site
from core.models.fused.store import Store
from core.models.fused.stream import Stream

_NUMBERS = itertools.count(1)


class Angles(NamedTuple):
    """Rotary tables."""

    cos: Tensor
    """[p, d] float32, a row for each position."""
    sin: Tensor


class Pass:
    """One forward pass over a batch, and all that its backward pass needs."""

    def __init__(
        self,
        shape: tuple[int, int],
        positions: Tensor,
        angles: dict[str, Angles],
        documents: Documents | None,
        store: Store,
        scratch: Scratch,
        chooser: Chooser,
    ) -> None:
        """Gather what the layers share.

        Args:
            shape: (b, s).
            positions: [b * s] int32, rows of the angles' tables.
            angles: By the name of a table.
            documents: Where rows hold several.
            store: Keeps tensors.
            scratch: Room for extended weights.
            chooser: Knows the fastest attention.
        """
        self.shape, self.positions, self.angles, self.documents = shape, positions, angles, documents
        self.store, self.scratch, self.chooser = store, scratch, chooser
        self.sites: dict[int, Site] = {}
        self.policies: dict[int, Policy] = {}
        self.handed: dict[int, Tensor] = {}
        self.stream = Stream()
        self.number = next(_NUMBERS)
        """No other pass has it."""
        self.last: Norm | None = None
        """The norm after the last layer, if it is one of the known ones."""
        self.depth = 0
        """Layers of the model."""
        self.gathering: Gathering | None = None
        """Where gradients of adapters wait for the last micro-batch of a step; None gives them to autograd."""

    def filled(self, group: Group) -> Tensor:
        """Return a group's extended matrix; what the forward pass wrote and nobody else since, is not written again."""
        return group.fill(self.scratch, self.number)

    def hand_on(self, index: int, like: Tensor) -> Tensor:
        """Make room for the gradient that a layer will be given, with the extra columns it will want: [t, e].

        The layer finds them again if nobody replaced the gradient on the way, which saves it a copy. One whose kernels
        compute thin products in passing wants none.
        """
        site = self.sites.get(index)
        hidden = next(iter(self.sites.values())).hidden
        if site is None or site.after_mlp is not None or site.is_thin:
            return like.new_empty(like.shape[0], hidden)
        self.handed[index] = wide = site.down.gradients(like.shape[0])
        return wide[:, :hidden]

    def handed_to(self, index: int, dy: Tensor) -> Tensor | None:
        """Return a gradient with its extra columns [t, e + R], if it is the one that was made for a layer."""
        wide = self.handed.pop(index, None)
        if wide is None or wide.data_ptr() != dy.data_ptr() or wide.stride() != dy.stride():
            return None
        return wide
