"""Whether a layer still is what it was read as: asked before every pass, so it must not take long.

Reading 32 layers takes 12 ms in which a GPU waits, for a training step begins with nothing queued. What a description
depends on are the modules and parameters inside, who listens to them, and settings of PEFT's layers, of dropout,
attention and norms. The model's config is taken to stay.
"""

from itertools import chain, repeat
from operator import attrgetter
from typing import Any

from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
SETTINGS = ("p", "eps", "variance_epsilon", "head_dim", "scaling", "sliding_window", "attention_dropout",
            "attn_logit_softcapping")  # fmt: skip
"""Attributes that are read, of the modules that have them; whether a module is in training counts for dropout."""
STATE = ("_disable_adapters", "_active_adapter", "merged_adapters", "scaling", "lora_variant", "lora_bias")
"""Of PEFT's layers."""
IS_TRAINED, WRITES, PACKED = map(attrgetter, ("requires_grad", "_version", "quant_state"))


class Watch:
    """Remembers a layer as it is."""

    def __init__(self, layer: nn.Module) -> None:
        """Look at a layer.

        Args:
            layer: What will be watched; its parts are held, so that nothing else can take their addresses.
        """
        self._modules = list(layer.modules())
        self._spaces = [vars(each) for each in self._modules]
        # Views follow their tables.
        self._tables = [
            space[name].values() for space in self._spaces for name in ("_modules", "_parameters")
        ]
        self._hooks = [space[name] for space in self._spaces for name in HOOKS]
        self._settings = [(vars(layer), "training")]
        self._state: list[tuple[dict[str, Any], str]] = []
        for module, space in zip(self._modules, self._spaces, strict=True):
            if isinstance(module, LoraLayer):
                self._state += [(space, name) for name in STATE if name in space]
            else:
                names = ("training", *SETTINGS) if isinstance(module, nn.Dropout) else SETTINGS
                self._settings += [(space, name) for name in names if name in space]
        self._parameters = list(layer.parameters())
        self._frozen = [each for each in self._parameters if not each.requires_grad]
        self._packed = [each for each in self._frozen if hasattr(each, "quant_state")]
        self._parts, self._values = self._parts_now(), self._values_now()

    def holds(self) -> bool:
        """Tell whether the layer is as it was."""
        return self._parts_now() == self._parts and self._values_now() == self._values

    def _parts_now(self) -> list[int]:
        return list(map(id, chain.from_iterable(self._tables)))

    def _values_now(self) -> tuple[Any, ...]:
        """Collect the rest, of the parts that were there.

        A frozen parameter's count of writes too; an adapter's grows with every step and says nothing.
        """
        return (
            list(map(Tensor.data_ptr, self._parameters)), list(map(IS_TRAINED, self._parameters)),
            list(map(WRITES, self._frozen)), list(map(id, map(PACKED, self._packed))),
            any(map(dict.__contains__, self._spaces, repeat("forward"))),
            [tuple(each.values()) for each in self._hooks] if any(self._hooks) else [],
            [space[name] for space, name in self._settings],
            [settled(space[name]) for space, name in self._state],
        )  # fmt: skip


def settled(value: Any) -> Any:
    """Copy what may be changed in place."""
    if isinstance(value, dict):
        return tuple(value.items())
    return tuple(value) if isinstance(value, list) else value
