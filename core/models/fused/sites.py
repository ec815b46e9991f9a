"""What a decoder layer of Transformers is made of, read from its modules; or why its own code must run instead."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from core.kernels.glu import Activation, fits_thin
from core.kernels.lora_linear import Adapter, Group, Projection
from core.kernels.lora_linear.group import at_home
from core.kernels.nf4 import Packed
from core.kernels.rope import Heads

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "gelu": "gelu",
}  # fmt: skip
GROUPS = {
    "qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "o": ("self_attn.o_proj",),
    "gate_up": ("mlp.gate_proj", "mlp.up_proj"), "down": ("mlp.down_proj",),
}  # fmt: skip
"""Projections that share an input."""
CAPTURES = "transformers.utils.output_capturing"
"""Whose hooks do nothing unless hidden states are asked for, which is left to the model's own code."""


class Unsupported(Exception):
    """A layer must run its own code; the message says why."""


class Norm(NamedTuple):
    """An RMS norm."""

    weight: Tensor
    eps: float
    offset: float
    """Added to the weight: 1 for Gemma."""


class Site(NamedTuple):
    """A decoder layer as the fused function computes it."""

    qkv: Group
    o: Group
    gate_up: Group
    down: Group
    before_attention: Norm
    after_attention: Norm | None
    """Gemma 3 normalises what attention adds to the residual, and what the MLP adds."""
    before_mlp: Norm
    after_mlp: Norm | None
    head_norms: tuple[Norm, Norm] | None
    """Of queries and keys, before they are turned."""
    heads: Heads
    activation: Activation
    scale: float
    """Factor of the attention scores."""
    window: int | None
    rope: str
    """Which table of angles, by layer type; "" where the model has one."""
    parameters: tuple[Tensor, ...]
    """Adapter weights A, B, A, B, .. in the order qkv, o, gate_up, down."""

    @property
    def inner(self) -> int:
        """Return the width of the MLP."""
        return self.down.k

    @property
    def groups(self) -> tuple[Group, Group, Group, Group]:
        """Return the linear layers by what they share, in the order of ``GROUPS``."""
        return self.qkv, self.o, self.gate_up, self.down

    @property
    def is_thin(self) -> bool:
        """Whether the MLP's kernels compute the thin products of its adapters in passing.

        They need no bias in the up projection, whose share is not a gradient's.
        """
        up = self.gate_up
        ranks, shape = (*up.ranks, *self.down.ranks), up.shape
        return bool(up.spare) and not shape.has_bias and fits_thin(ranks, shape.dtype, shape.device)

    @property
    def hidden(self) -> int:
        """Return the model width."""
        return self.qkv.k


class Home(NamedTuple):
    """An extended matrix that holds weights for good."""

    matrix: Tensor
    ranks: tuple[tuple[int, ...], ...]
    """The adapters it has room for; others must not find what these left behind."""
    packed: tuple[tuple[int, int], ...] = ()
    """The ``addresses`` of the 4-bit weights that it holds unpacked; empty if it is where the weights live."""

    def fits(self, group: Group) -> bool:
        """Tell whether it still is the matrix of a group."""
        if self.ranks != group.shape.ranks or self.packed != addresses(group):
            return False
        return bool(self.packed) or lie_in(self.matrix, group.projections)


Homes = Mapping[tuple[int, str], Home]
"""By layer and group."""


def read_site(
    layer: nn.Module,
    settings: Any,
    index: int,
    dtype: torch.dtype,
    homes: Homes,
    *,
    is_training: bool | None = None,
) -> Site:
    """Describe a decoder layer as it is now: adapters may have been switched since the last look.

    Args:
        layer: A decoder layer of one of ``FAMILIES``, with PEFT's layers in it or without.
        settings: The model's config.
        index: Its number.
        dtype: What is computed in.
        homes: From ``settle``.
        is_training: Whether dropout counts; None if it does now.

    Raises:
        Unsupported: If it does anything that the fused function does not.
    """
    refuse_hooks(layer)
    is_training = layer.training if is_training is None else is_training
    attention: Any = layer.self_attn
    found = groups_of(layer, index, dtype, homes, is_training)
    heads = Heads(settings.num_attention_heads, settings.num_key_value_heads, attention.head_dim)
    if float(getattr(attention, "attention_dropout", 0.0) or 0.0) and is_training:
        raise Unsupported("it has dropout in its attention")
    if getattr(attention, "attn_logit_softcapping", None):
        raise Unsupported("it caps attention scores")
    is_sandwich = hasattr(layer, "pre_feedforward_layernorm")
    second = layer.get_submodule("pre_feedforward_layernorm" if is_sandwich else "post_attention_layernorm")
    kinds = getattr(settings, "layer_types", None)
    kind = kinds[index] if kinds else ""
    qkv, o, gate_up, down = found
    return Site(
        qkv,
        o,
        gate_up,
        down,
        norm_of(layer.get_submodule("input_layernorm")),
        norm_of(layer.get_submodule("post_attention_layernorm")) if is_sandwich else None,
        norm_of(second),
        norm_of(layer.get_submodule("post_feedforward_layernorm")) if is_sandwich else None,
        (norm_of(attention.q_norm), norm_of(attention.k_norm)) if hasattr(attention, "q_norm") else None,
        heads,
        activation_of(settings),
        float(attention.scaling),
        window_of(attention, settings),
        kind if is_sandwich else "",
        tuple(weights_of(found)),
    )


def groups_of(
    layer: nn.Module, index: int, dtype: torch.dtype, homes: Homes, is_training: bool
) -> list[Group]:
    """Describe the linear layers by what they share, in the order of ``GROUPS``."""
    found: list[Group] = []
    for name, members in GROUPS.items():
        projections = [projection_of(layer.get_submodule(each), is_training) for each in members]
        group = Group(projections, dtype)
        home = homes.get((index, name))
        if home and home.fits(group):
            group.home = home.matrix
        found.append(group)
    return found


def weights_of(groups: list[Group]) -> Iterator[Tensor]:
    """Yield the adapter weights of groups in order."""
    for group in groups:
        for projection in group.projections:
            for adapter in projection.adapters:
                yield adapter.a
                yield adapter.b


def activation_of(settings: Any) -> Activation:
    """Return the kernel's name of the MLP's activation."""
    name = getattr(settings, "hidden_activation", None) or settings.hidden_act
    if name not in ACTIVATIONS:
        raise Unsupported(f"its activation is {name}")
    return ACTIVATIONS[name]


def window_of(attention: Any, settings: Any) -> int | None:
    """Return how many tokens a token of this layer sees; None for all before it."""
    if settings.model_type == "mistral":
        found = getattr(settings, "sliding_window", None)
    else:
        found = getattr(attention, "sliding_window", None)
    return int(found) if found else None


def norm_of(module: nn.Module) -> Norm:
    """Describe an RMS norm of Transformers."""
    weight = module.weight
    if not isinstance(weight, Tensor) or weight.requires_grad:
        raise Unsupported("one of its norms is trained")
    eps = getattr(module, "variance_epsilon", None)
    is_gemma = eps is None
    return Norm(weight, float(module.eps if is_gemma else eps), 1.0 if is_gemma else 0.0)  # type: ignore[arg-type]


def refuse_hooks(layer: nn.Module) -> None:
    """See that nobody listens to a layer or the modules inside, which the fused function does not call."""
    for module in layer.modules():
        if "forward" in vars(module):
            raise Unsupported("one of its modules has been given another forward function")
        for hooks in (
            module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks
        ):  # fmt: skip
            # Once asked for hidden states, Transformers leaves hooks that sleep until it is asked again.
            if hooks and any(getattr(each, "__module__", "") != CAPTURES for each in hooks.values()):
                raise Unsupported("something listens to its modules (hooks)")


def projection_of(module: nn.Module, is_training: bool) -> Projection:
    """Describe a linear layer and its active adapters."""
    base = module.get_base_layer() if isinstance(module, LoraLayer) else module
    if type(base).__name__ == "Linear4bit":
        weight: Tensor | Packed = packed_weight(base.weight)
    elif type(base) is nn.Linear:
        weight = base.weight
    else:
        raise Unsupported(f"it holds weights in a {type(base).__name__}")
    bias = base.bias
    if (isinstance(weight, Tensor) and weight.requires_grad) or (
        isinstance(bias, Tensor) and bias.requires_grad
    ):
        raise Unsupported("its base weights or biases are trained")
    adapters = tuple(adapters_of(module, is_training)) if isinstance(module, LoraLayer) else ()
    return Projection(weight, bias if isinstance(bias, Tensor) else None, adapters)


def adapters_of(module: Any, is_training: bool) -> Iterator[Adapter]:
    """Yield the active adapters of one of PEFT's layers."""
    if module.disable_adapters or module.merged:
        return
    for name in module.active_adapters:
        if name not in module.lora_A:
            continue
        if module.lora_variant.get(name) is not None or module.lora_bias.get(name):
            raise Unsupported("its adapter is of another kind than plain LoRA (DoRA, a trained bias, ..)")
        dropout: Any = module.lora_dropout[name]
        if is_training and float(getattr(dropout, "p", 0.0)) > 0.0:
            raise Unsupported("its adapter has dropout")
        yield Adapter(module.lora_A[name].weight, module.lora_B[name].weight, float(module.scaling[name]))


def packed_weight(weight: Any) -> Packed:
    """Describe a 4-bit weight of bitsandbytes."""
    state = getattr(weight, "quant_state", None)
    if state is None:
        raise Unsupported("its 4-bit weights are not packed yet")
    nested = state.state2 if state.nested else None
    return Packed(
        weight.detach(),  # Unlike .data it counts how often the weight was written.
        state.absmax,
        state.code,
        int(state.blocksize),
        (int(state.shape[0]), int(state.shape[1])),
        state.dtype,
        nested.absmax if nested else None,
        nested.code if nested else None,
        int(nested.blocksize) if nested else 256,
        state.offset if nested else None,
    )


def settle(layers: nn.ModuleList, settings: Any, dtype: torch.dtype) -> dict[tuple[int, str], Home]:
    """Move weights of 16 or 32 bits into extended matrices; the modules' parameters become views of them.

    Needs twice the memory of one group of one layer while it works. Layers that are not supported stay.
    """
    homes: dict[tuple[int, str], Home] = {}
    for index, layer in enumerate(layers):
        try:
            site = read_site(layer, settings, index, dtype, {})
        except Unsupported:
            continue
        for name, group in zip(GROUPS, site.groups, strict=True):
            if group.spare and all(fits_home(each, dtype) for each in group.projections):
                home = Home(at_home(group.projections, dtype), group.shape.ranks)
                homes[index, name] = home
                move_in(layer, name, home.matrix)
    return homes


def addresses(group: Group) -> tuple[tuple[int, int], ...]:
    """Return where the 4-bit weights of a group lie, and how often each was written (0 if nobody counts)."""
    packed = (each.weight.data for each in group.projections if isinstance(each.weight, Packed))
    return tuple((each.data_ptr(), 0 if each.is_inference() else each._version) for each in packed)


def fits_home(projection: Projection, dtype: torch.dtype) -> bool:
    """Tell whether a weight can live in an extended matrix."""
    return isinstance(projection.weight, Tensor) and projection.weight.dtype == dtype


def lie_in(home: Tensor, projections: Sequence[Projection]) -> bool:
    """Tell whether weights still lie in their extended matrix; merging, say, may have put others in their place."""
    place, size = home.data_ptr(), home.stride(0) * home.element_size()
    for each in projections:
        if isinstance(each.weight, Packed) or each.weight.data_ptr() != place:
            return False
        place += each.rows * size
    return True


def move_in(layer: nn.Module, group: str, home: Tensor) -> None:
    """Let the modules of a group read their weights from its extended matrix."""
    row = 0
    for name in GROUPS[group]:
        base = base_of(layer.get_submodule(name))
        rows, columns = base.weight.shape
        base.weight.data = home[row : row + rows, :columns]
        row += rows


def move_out(layers: nn.ModuleList, homes: dict[tuple[int, str], Home]) -> dict[tuple[int, str], Home]:
    """Give the modules weights of their own again; the extended matrices go one by one.

    Returns:
        What ``move_back`` needs: the homes without their memory.
    """
    left = {}
    for key in [key for key, home in homes.items() if not home.packed]:
        home = homes.pop(key)
        left[key] = home._replace(matrix=home.matrix.to("meta"))
        for name in GROUPS[key[1]]:
            base = base_of(layers[key[0]].get_submodule(name))
            base.weight.data = base.weight.data.clone(memory_format=torch.contiguous_format)
    return left


def move_back(layers: nn.ModuleList, left: Homes) -> dict[tuple[int, str], Home]:
    """Undo ``move_out``, again one by one."""
    homes = {}
    for (index, group), home in left.items():
        weights = [base_of(layers[index].get_submodule(name)).weight.data for name in GROUPS[group]]
        matrix = torch.zeros(home.matrix.shape, dtype=home.matrix.dtype, device=weights[0].device)
        torch.cat(weights, out=matrix[: sum(map(len, weights)), : weights[0].shape[1]])
        homes[index, group] = home._replace(matrix=matrix)
        move_in(layers[index], group, matrix)
    return homes


def base_of(module: nn.Module) -> Any:
    """Return the layer under its adapters."""
    return module.get_base_layer() if isinstance(module, LoraLayer) else module
