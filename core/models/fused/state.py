"""The handle of a fused model: what its layers are, what they may keep, and how to undo it all."""

import copy
import math
import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from core.kernels.attention import Chooser
from core.kernels.lora_linear import Scratch
from core.models.fused.costs import FAMILIES, HOST_SHARE, peak_bytes
from core.models.fused.first_step import FirstStep
from core.models.fused.following import held, strays
from core.models.fused.gathering import Gathering
from core.models.fused.gpu import rates_here, unheld
from core.models.fused.main_memory import free_main_memory
from core.models.fused.passes import Angles
from core.models.fused.policy import (
    FULL,
    Held,
    LayerShape,
    Plan,
    Policy,
    choose_micro_batch,
    divisors,
    plan_with_expansions,
)
from core.models.fused.readings import Readings
from core.models.fused.sites import Home, Site, Unsupported, addresses, move_back, move_out, settle
from core.models.fused.store import HostMemory
from core.models.fused.unpacking import Turns, expansions, held_bytes, pack, ranks_by_layer, unpack

MARK = "_fused_state"
SAVE = "save_pretrained"
SHRINK = 0.7
"""What may still be held of what was held when memory ran out."""
LEAST_LEFT = 0.05
"""Share of it below which nothing more is given up."""
GRAIN = 512
"""Tokens that a plan is made for are a multiple of this."""


class FusedNotice(UserWarning):
    """A layer, or a batch, runs by the model's own code."""


class FusedState:
    """What the fused functions of one model share."""

    def __init__(self, backbone: nn.Module, settings: Any, dtype: torch.dtype) -> None:
        """Look at a model; nothing is changed yet.

        Args:
            backbone: What turns token ids into hidden states; has ``layers``, ``norm`` and ``rotary_emb``.
            settings: Its config.
            dtype: What is computed in.
        """
        self.backbone, self.settings, self.dtype = backbone, settings, dtype
        self.layers: nn.ModuleList = backbone.layers  # type: ignore[assignment]
        self.device = self._embeddings.device
        self._held = held(self.layers)
        self._is_models_dtype = dtype == self._embeddings.dtype
        self.scratch, self.chooser, self.host = Scratch(), Chooser(), HostMemory()
        self.homes: dict[tuple[int, str], Home] = {}
        self.told: set[str] = set()
        self.angles: dict[tuple[str, int], Angles] = {}
        self._activation_bytes: int | None = None
        self.is_checkpointed = True
        """False keeps everything, whatever it takes."""
        self.planned: Plan | None = None
        self.rates = rates_here(self.device)
        self.replaced: Callable[..., Any] = backbone.forward
        """The backbone's own function."""
        self.savers: tuple[nn.Module, ...] = ()
        """Modules that have been given another function to be saved by."""
        self._most: int | None = None
        """Bytes that may be held for the backward pass since memory ran out."""
        self._failed = 0
        """Bytes of the first plan that memory ran out under."""
        self.first_step = FirstStep()
        self.gathering: Gathering | None = None
        """Of the step that is under way, if its micro-batches are known."""
        self._limit: int | None = None
        self._plans: dict[Hashable, Held] = {}
        self._turns, self._readings = Turns(), Readings()

    def __deepcopy__(self, memo: dict[int, Any]) -> "FusedState":
        """Go along with a model that is copied: the copy computes with its own weights, wherever they lie."""
        other = memo[id(self)] = copy.copy(self)
        for name in ("backbone", "layers", "settings", "replaced", "savers"):
            setattr(other, name, copy.deepcopy(getattr(self, name), memo))
        other.scratch, other.chooser, other.host = Scratch(), Chooser(), HostMemory()
        other.first_step, other.gathering = FirstStep(), None
        other.homes, other.angles, other.told, other._plans = {}, {}, set(self.told), {}
        other._turns, other._readings = Turns(), Readings()
        return other

    def settle(self) -> None:
        """Move weights of 16 or 32 bits to where products read them."""
        self.homes = settle(self.layers, self.settings, self.dtype)

    @contextmanager
    def moved_out(self) -> Iterator[None]:
        """Give the modules weights of their own for a while; it takes the memory of one more group of a layer."""
        self.sites()
        # They hold the matrices that are moved out of.
        self._readings.forget()
        with torch.inference_mode(False):
            left = move_out(self.layers, self.homes)
        try:
            yield
        finally:
            with torch.inference_mode(False):
                self.homes |= move_back(self.layers, left)

    def unload(self) -> None:
        """Give the model its own forward function and its own weights again."""
        self._readings.forget()
        move_out(self.layers, self.homes)
        self.homes = {}
        self.host.close()
        self.scratch = Scratch()
        del self.backbone.forward
        if self.replaced != self.backbone.forward:
            # It was not its class's function either.
            self.backbone.forward = self.replaced
        for each in self.savers:
            delattr(each, SAVE)
        self.savers = ()
        delattr(self.backbone, MARK)

    def sites(self, *, is_training: bool | None = None) -> dict[int, Site]:
        """Describe the layers as they are now; those left out run their own code.

        Args:
            is_training: Whether dropout counts; None if it does now.
        """
        self._follow()
        found = self._read(is_training)
        if strays(found, self.homes):
            self._settle_anew()
            found = self._read(is_training)
            for key in strays(found, self.homes):
                del self.homes[key]
        return found

    def _read(self, is_training: bool | None) -> dict[int, Site]:
        found = {}
        for index, layer in enumerate(self.layers):
            try:
                found[index] = self._readings.read(
                    layer, self.settings, index, self.dtype, self.homes, is_training
                )
            except Unsupported as reason:
                self.tell(f"some layers run by the model's own code: {reason}")
        return found

    @property
    def _embeddings(self) -> Tensor:
        backbone: Any = self.backbone
        found: Tensor = backbone.embed_tokens.weight
        return found

    def _follow(self) -> None:
        """Compute in what the model is held in now, and where it lies, should it have been cast or moved.

        A dtype that was asked for, other than the model's, stays.
        """
        now = held(self.layers)
        if now == self._held:
            return
        if now[1] != self._held[1]:
            self.host = HostMemory(self.host.lock, self.host.unused)
        self._held, self.device = now, self._embeddings.device
        self.dtype = self._embeddings.dtype if self._is_models_dtype else self.dtype
        self.rates, self.scratch, self.chooser = rates_here(self.device), Scratch(), Chooser()
        self.planned = None
        self.angles.clear()
        self._plan_anew()
        self._forget_expanded()
        self._settle_anew()

    def _settle_anew(self) -> None:
        """Move weights to where products read them once more; what others left behind is given back."""
        self._readings.forget()
        self._turns.in_force = None
        with torch.inference_mode(False):
            move_out(self.layers, self.homes)
            self.homes |= settle(self.layers, self.settings, self.dtype)

    def tell(self, notice: str) -> None:
        """Say something once."""
        if notice not in self.told:
            self.told.add(notice)
            warnings.warn(notice, FusedNotice, stacklevel=3)

    @staticmethod
    def warn(notice: str) -> None:
        """Say that nothing is fused."""
        warnings.warn(notice, FusedNotice, stacklevel=3)

    def tables(self, key: str, positions: int) -> Angles:
        """Return cosines and sines of the first positions, in float32, by the model's own scaling."""
        found = self.angles.get((key, positions))
        if found is None:
            rotary: Any = self.backbone.rotary_emb
            # Tables made in an inference must serve training too.
            with torch.inference_mode(False):
                places = torch.arange(positions, device=self.device)[None]
                like = torch.empty(0, dtype=torch.float32, device=self.device)
                cos, sin = rotary(like, places, key) if key else rotary(like, places)
                found = Angles(cos[0].float().contiguous(), sin[0].float().contiguous())
            if len(self.angles) > 8:
                self.angles.clear()
            self.angles[key, positions] = found
        return found

    # What to keep

    @property
    def activation_bytes(self) -> int | None:
        """What the layers may keep on the GPU; None finds out what is free."""
        return self._activation_bytes

    @activation_bytes.setter
    def activation_bytes(self, value: int | None) -> None:
        self._activation_bytes = value
        self._plan_anew()

    def _plan_anew(self) -> None:
        self._plans.clear()
        self._turns.forget()

    def shape_of(self, site: Site) -> LayerShape:
        """Give the planner's view of a layer."""
        heads, is_sandwich = site.heads, site.after_mlp is not None
        q, k, width = heads.query * heads.width, heads.key * heads.width, self.dtype.itemsize
        return LayerShape(
            site.hidden, q, k, heads.query, heads.width, site.inner, is_sandwich, width, site.window
        )

    def policies(self, sites: dict[int, Site], tokens: int, longest: int) -> dict[int, Policy]:
        """Choose what each layer keeps for a micro-batch.

        Args:
            sites: The layers.
            tokens: Of the micro-batch.
            longest: Of its longest document.
        """
        if not sites or not self.is_checkpointed or self.device.type != "cuda":
            if held_bytes(self.homes):
                self._forget_expanded(sites)
            return dict.fromkeys(sites, FULL)
        # Rounded, so that batches of ever new lengths share a plan.
        tokens, longest = (math.ceil(each / GRAIN) * GRAIN for each in (tokens, longest))
        kind = ranks_by_layer(sites)
        key = tokens, longest, kind
        self.first_step.look(sites[min(sites)].parameters, self.gathering)
        if self.host.limit != self._limit:
            # Main memory turned out to be smaller than was planned with.
            self._limit = self.host.limit
            self._plan_anew()
        if key not in self._plans:
            # What is free depends on what is held: the first plan for a size stands until memory runs out.
            self._plans[key] = plan_with_expansions(
                self.shapes(sites), expansions(sites), tokens, longest, max(0, self._room(sites, tokens)),
                self.host_room(), self.rates,
            )  # fmt: skip
        self.planned = self._plans[key].plan
        self._expand(sites, kind, self._plans[key].expanded)
        return dict(zip(sites, self.planned.policies, strict=True))

    def _expand(self, sites: dict[int, Site], kind: Hashable, room_for: int) -> None:
        """Keep weights of first layers expanded, no more than this and any of the last passes has room for."""
        wanted = self._turns.wanted(room_for), kind
        if wanted == self._turns.in_force:
            return
        # Memory may run out half way.
        self._turns.in_force = None
        if pack(sites, self.homes, wanted[0]):
            # The old descriptions hold the matrices.
            self._read(is_training=None)
        unpack(sites, self.homes, wanted[0])
        self._turns.in_force = wanted

    def _room(self, sites: dict[int, Site], tokens: int) -> int:
        """Return the bytes that may be kept beside what a layer needs while it is computed."""
        room = self.activation_bytes
        if room is None:
            vocabulary, shapes = len(self._embeddings), set(self.shapes(sites))
            room = self._unheld(sites) - max(peak_bytes(each, tokens, vocabulary) for each in shapes)
        return room if self._most is None else min(room, self._most)

    def _unheld(self, sites: dict[int, Site]) -> int:
        """Return the bytes of the GPU for a micro-batch; weights that are expanded make room where a plan says so."""
        return self.room() - self._to_come(sites) + held_bytes(self.homes)

    def _forget_expanded(self, sites: dict[int, Site] | None = None) -> None:
        """Let go of expanded 4-bit weights, also in descriptions of layers that are at hand."""
        self._readings.forget()
        pack(sites or {}, self.homes)
        self._turns.in_force = None

    def shapes(self, sites: dict[int, Site]) -> tuple[LayerShape, ...]:
        """Give the planner's view of the layers."""
        return tuple(self.shape_of(site) for site in sites.values())

    def room(self) -> int:
        """Return the bytes of the GPU that nothing holds, less a reserve."""
        return unheld(self.device)

    def host_room(self) -> int:
        """Return the bytes of main memory that may be locked."""
        if self.host.limit is not None:
            return self.host.limit
        return int((free_main_memory() + self.host.nbytes) * HOST_SHARE)

    def _to_come(self, sites: dict[int, Site]) -> int:
        """Count what the first step will still take: gradients, a state of the optimizer, extended weights."""
        trained = sum(each.numel() for site in sites.values() for each in site.parameters)
        groups = sites[min(sites)].groups
        scratch = sum(each.shape.nbytes for each in groups if each.home is None or addresses(each))
        return self.first_step.to_come(trained) + max(0, scratch - self.scratch.nbytes)

    @property
    def host_bytes(self) -> int:
        """Return the bytes of main memory that are locked."""
        return self.host.nbytes

    def give_way(self) -> bool:
        """Plan with less memory from now on.

        Returns:
            False if nothing was kept on the GPU that could be given up.
        """
        # The gradients that are thrown away now are no step.
        self.first_step.has_gradients = False
        held = self._held_back()
        self._failed = self._failed or held
        has_obeyed = self._most is None or held <= self._most
        could = has_obeyed and held > LEAST_LEFT * self._failed
        # What comes after the last "no" is another micro-batch, which may have all the room again.
        self._most, self._failed = (int(SHRINK * held), self._failed) if could else (None, 0)
        self._plan_anew()
        self._forget_expanded()
        return could

    def _held_back(self) -> int:
        """Count the bytes that the last plan holds for the backward pass, expanded 4-bit weights among them."""
        return held_bytes(self.homes) + (self.planned.device_bytes if self.planned else 0)

    def best_micro_batch(self, rows_per_step: int, window: int, wanted: int) -> int:
        """Return the micro-batch that takes the least time in the memory there is.

        Args:
            rows_per_step: Rows of an optimizer step.
            window: Tokens of the longest row.
            wanted: What was asked for; taken where nothing is known to be better.
        """
        self._follow()
        if self.device.type != "cuda" or self.activation_bytes is not None or not self.is_checkpointed:
            return wanted
        # Asked before the first step, when the model may still be in evaluation.
        sites = self.sites(is_training=True)
        if not sites:
            return wanted
        return choose_micro_batch(
            divisors(rows_per_step), wanted, rows_per_step, window, self.shapes(sites), self._unheld(sites),
            self.host_room(), self.rates, expansions=expansions(sites), vocabulary=len(self._embeddings),
        )  # fmt: skip


def fused_state(model: nn.Module) -> FusedState | None:
    """Return the handle of a fused model, also below an adapter; None of any other model."""
    found: FusedState | None = getattr(backbone_of(model), MARK, None)
    return found


def backbone_of(model: nn.Module) -> nn.Module:
    """Return what turns token ids into hidden states."""
    inner: Any = model
    if hasattr(inner, "get_base_model"):
        inner = inner.get_base_model()
    found: nn.Module = getattr(inner, "base_model", inner)
    return found


def obstacle(model: nn.Module) -> str | None:
    """Say why nothing of a model can be fused; None if its family is known."""
    settings: Any = getattr(backbone_of(model), "config", None)
    kind = getattr(settings, "model_type", None)
    if kind not in FAMILIES:
        return f"models of type {kind} have no fused layers"
    if getattr(settings, "use_bidirectional_attention", False):
        return "its attention looks ahead"
    return None
