"""Several adapters on one base, switched at run time: one copy of the base in memory serves them all."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from peft import PeftModel
from transformers import PreTrainedModel

from core.errors import ModelError
from core.models.adapter_files import check_adapter
from core.models.failures import clear_messages


class AdapterSet:
    """A base and its adapters, of which one or none is in use."""

    def __init__(self, model: PeftModel, slots: Mapping[str, str]) -> None:
        """Remember the model; use ``load``.

        Args:
            model: The base with every adapter loaded.
            slots: PEFT's name of each adapter by ours; PEFT does not take every name.
        """
        self.model, self._slots = model, dict(slots)
        self._layers: Any = model.base_model

    @classmethod
    def load(cls, base: PreTrainedModel, adapters: Mapping[str, Path]) -> Self:
        """Put every adapter on the base and use none.

        Args:
            base: The model they were trained on, also a quantized one.
            adapters: Folder of each adapter by its name.

        Raises:
            ModelError: If an adapter is for another base, is damaged, or cannot be taken off again.
        """
        if not adapters:
            raise ModelError("no adapter was given", fix="name at least one adapter folder")
        for folder in adapters.values():
            _check_switchable(folder, base)
        slots = {name: f"slot{number}" for number, name in enumerate(adapters)}
        model: PeftModel | None = None
        for name, folder in adapters.items():
            with clear_messages(str(folder)):
                if model is None:
                    model = PeftModel.from_pretrained(base, folder, adapter_name=slots[name])
                else:
                    model.load_adapter(folder, adapter_name=slots[name])
        assert model is not None  # there is at least one
        made = cls(model.eval(), slots)
        made.use(None)
        return made

    @property
    def names(self) -> tuple[str, ...]:
        """The adapters, in the order they were given."""
        return tuple(self._slots)

    def use(self, name: str | None) -> PeftModel:
        """Switch to an adapter, or to the bare base with None.

        Returns:
            The model, in evaluation mode.

        Raises:
            ModelError: If there is no such adapter.
        """
        if name is None:
            self._layers.disable_adapter_layers()
            return self.model
        if name not in self._slots:
            raise ModelError(f"no adapter named {name}", fix=f"one of {', '.join(self._slots)}")
        self._layers.enable_adapter_layers()
        self.model.set_adapter(self._slots[name], inference_mode=True)
        return self.model


def _check_switchable(folder: Path, base: PreTrainedModel) -> None:
    settings = check_adapter(folder, base)
    if settings.get("bias", "none") != "none" or settings.get("modules_to_save"):
        raise ModelError(
            "the adapter also replaces weights of the base, so it cannot be taken off again",
            where=str(folder),
            fix="train adapters that are to be switched with lora.bias: none",
        )
