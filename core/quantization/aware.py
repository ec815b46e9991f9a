"""Quantization-aware training: every linear layer computes with the weights that the file will hold.

Prepare, train, convert. ``prepare`` makes an adapted layer compute y = x Q(W + s B A)^T, with Q of
``core.quantization.grids``; the gradient takes Q for the identity (the straight-through estimator,
arXiv:1308.3432, section 4) and reaches A and B. Training does not know of it. The same ``prepare`` before the
adapter is folded in makes the merged weights those that were trained with.

What is frozen is rounded once: layers without an adapter, and the embedding and the output head wherever a file
holds them on one of these grids; a head with an adapter is rounded in every pass. Q4_0 files hold the head, and an
embedding that shares its weights, in a finer type (Q6_K), and those stay as they are. Activations are not rounded.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any, Literal

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from core.errors import ModelError
from core.models.engines import framework_of
from core.models.hf import is_quantized
from core.models.merging import ROUNDING, updated_weight
from core.models.targeting import OTHER_SENSES, output_head
from core.quantization.aware_limits import AdapterTraits, aware_obstacles
from core.quantization.config import AwareType
from core.quantization.grids import BLOCK, holds, snap, snap_over

TABLES: dict[AwareType, AwareType] = {"Q8_0": "Q8_0", "int4": "int8", "int8": "int8"}
"""The grid on which files of a type hold the embedding and the output head."""
ROWS = 4096
"""Rows of a frozen matrix that are rounded at once: a vocabulary is long."""


def prepare(model: PeftModel, kind: AwareType) -> int:
    """Let every matrix that files of this type round be the rounded one.

    Linear layers with an adapter round in every pass. What is frozen is rounded here, once and in place.

    Args:
        model: A base in 16 or 32 bits with a fresh or a trained adapter.
        kind: The type of the file.

    Returns:
        How many linear layers of the decoder are rounded.

    Raises:
        ConfigError: If the adapter or the engine has no rounded weight: see ``aware_obstacles``.
        ModelError: If the model has no layer that files of this type round.
    """
    for obstacle in aware_obstacles(kind, traits(model)):
        raise obstacle
    found = 0
    for layer in linear_layers(model):
        base: Any = layer.get_base_layer() if isinstance(layer, LoraLayer) else layer
        if not holds(base.in_features, kind):
            continue
        found += 1
        if isinstance(layer, LoraLayer):
            _let_round(layer, kind)
        else:
            _round_once(base.weight, kind)
    if not found:
        raise ModelError(f"no layer of this model is rounded by {kind}", where="quantization.aware")
    _round_tables(model.get_base_model(), kind)
    return found


def traits(model: PeftModel) -> AdapterTraits:
    """Read off a model what decides whether its weights can be rounded while it is trained."""
    settings: Any = model.peft_config["default"]
    base = model.get_base_model()
    bits: Literal[4, 8] | None = 8 if getattr(base, "is_loaded_in_8bit", False) else 4
    return AdapterTraits(
        framework_of(model), bits if is_quantized(base) else None, settings.use_dora, settings.lora_dropout
    )


def linear_layers(model: PeftModel) -> Iterator[nn.Module]:
    """Iterate over the decoder's linear layers, adapted ones in their wrapper; neither the head nor a vision tower."""
    head = output_head(model.get_base_model())
    inside: str | None = None
    for name, module in model.named_modules():
        if (inside and name.startswith(inside)) or re.fullmatch(OTHER_SENSES, name):
            continue
        wrapped = isinstance(module, LoraLayer)
        # What lies in a wrapper (the layer itself, A, B) is linear, too.
        inside = f"{name}." if wrapped else None
        bare: Any = module.get_base_layer() if wrapped else module  # type: ignore[operator]
        if isinstance(bare, nn.Linear) and head is not module and head is not bare:
            yield module


def _round_tables(base: Any, kind: AwareType) -> None:
    """Round the embedding and the output head, unless files hold them in other types."""
    head: Any = output_head(base)
    embedding = base.get_input_embeddings()
    is_shared = head is not None and head.weight is embedding.weight
    on_grid = TABLES.get(kind)
    of_embedding = on_grid if is_shared or on_grid else kind
    if of_embedding and embedding.weight.shape[1] % BLOCK == 0:
        _round_once(embedding.weight, of_embedding)
    if on_grid is None or head is None or is_shared:
        return
    if isinstance(head, LoraLayer):
        _let_round(head, on_grid)
    else:
        _round_once(head.weight, on_grid)


@torch.no_grad()
def _round_once(weight: Tensor, kind: AwareType) -> None:
    for rows in weight.split(ROWS):
        rows.copy_(snap(rows, kind))


def _let_round(layer: Any, kind: AwareType) -> None:
    layer.forward = functools.partial(_forward, layer, kind)
    setattr(layer, ROUNDING, functools.partial(snap, kind=kind))


def _forward(layer: Any, kind: AwareType, x: Tensor) -> Tensor:
    """Compute what the merged and quantized layer computes, x [..., inputs] to [..., outputs]."""
    base, place = layer.get_base_layer(), x.device.type
    dtype = torch.get_autocast_dtype(place) if torch.is_autocast_enabled(place) else x.dtype
    x = x.to(dtype)
    if layer.disable_adapters or layer.merged:
        return linear(
            x, snap(base.weight, kind).to(dtype), None if base.bias is None else base.bias.to(dtype)
        )
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    straight: Any = _Straight.apply
    made: Tensor = straight(x, down, up, base.bias, base.weight, layer.scaling["default"], kind)
    return made


class _Straight(torch.autograd.Function):
    """y = x Q(W + s B A)^T + b, with the gradient of y = x (W + s B A)^T + b at the rounded weight.

    The rounded weight is not kept for the backward pass but made again: kept, all of them would be the model once
    more. Products are formed in the dtype of x, as autocast does.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        down: Tensor,
        up: Tensor,
        bias: Tensor | None,
        weight: Tensor,
        scale: float,
        kind: AwareType,
    ) -> Tensor:
        """Compute y [..., outputs] from x [..., inputs], A [r, inputs], B [outputs, r], b and W [outputs, inputs]."""
        ctx.save_for_backward(x, down, up, weight)
        ctx.scale, ctx.kind = scale, kind
        with torch.autocast(x.device.type, enabled=False):
            rounded = _rounded(weight, down, up, scale, kind).to(x.dtype)
            return linear(x, rounded, None if bias is None else bias.to(x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Compute dx = dy Q, dA = s (dy B)^T x, dB = s dy^T (x A^T), db = the sum of dy's rows."""
        x, down, up, weight = ctx.saved_tensors
        dx = d_down = d_up = d_bias = None
        with torch.autocast(x.device.type, enabled=False):
            rows, given = x.flatten(0, -2), dy.flatten(0, -2)
            if ctx.needs_input_grad[0]:
                dx = dy @ _rounded(weight, down, up, ctx.scale, ctx.kind).to(dy.dtype)
            if ctx.needs_input_grad[1]:
                d_down = ((given @ up.to(dy.dtype)).T @ rows).float().mul_(ctx.scale)
            if ctx.needs_input_grad[2]:
                d_up = (given.T @ (rows @ down.to(x.dtype).T)).float().mul_(ctx.scale)
            if ctx.needs_input_grad[3]:
                d_bias = given.sum(0)
        return dx, _like(d_down, down), _like(d_up, up), d_bias, None, None, None


def _rounded(weight: Tensor, down: Tensor, up: Tensor, scale: float, kind: AwareType) -> Tensor:
    return snap_over(updated_weight(weight, down, up, scale), kind)


def _like(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    return None if gradient is None else gradient.to(parameter.dtype)
