"""What cannot be combined with quantization-aware training; known from settings, without PyTorch."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from core.errors import ConfigError
from core.models.config import LoraConfig, ModelConfig
from core.quantization.config import AwareType, QuantizationConfig


class AdapterTraits(NamedTuple):
    """What decides whether the weights of an adapted base can be rounded while it is trained."""

    framework: str
    """Engine that trains."""
    bits: Literal[4, 8] | None
    """In how many bitsandbytes holds the base; None if it does not."""
    use_dora: bool
    dropout: float
    """Dropout on the adapter's input."""


def traits_of(model: ModelConfig, lora: LoraConfig) -> AdapterTraits:
    """Read off settings what ``core.quantization.aware.traits`` reads off a model."""
    bits: Literal[4, 8] | None = 8 if model.load_in_8bit else 4 if model.load_in_4bit else None
    return AdapterTraits(model.framework, bits, lora.use_dora, lora.lora_dropout)


def check_aware(kind: AwareType, model: ModelConfig, lora: LoraConfig) -> None:
    """Refuse settings under which a type's rounding cannot be trained with.

    Raises:
        ConfigError: The first of ``aware_obstacles``.
    """
    for obstacle in aware_obstacles(kind, traits_of(model, lora)):
        raise obstacle


def aware_obstacles(kind: AwareType, traits: AdapterTraits) -> Iterator[ConfigError]:
    """Yield every reason against training with a type's rounding.

    Args:
        kind: The type.
        traits: The base and its adapter.
    """
    off = "or set quantization.aware: null"
    if traits.framework != "hf":
        yield ConfigError(
            f"{traits.framework} computes adapters in kernels of its own, which do not round to {kind}",
            where="model.framework",
            fix=f"model.framework: hf, {off}",
        )
    if traits.bits:
        yield ConfigError(
            f"a base held in {traits.bits} bits while it is trained has already been rounded otherwise than {kind} does",
            where=f"model.load_in_{traits.bits}bit",
            fix=f"set load_in_4bit: false and load_in_8bit: false, {off}",
        )
    if traits.use_dora:
        yield ConfigError(
            f"rounding to {kind} in training is made for plain low-rank updates, not for DoRA",
            where="lora.use_dora",
            fix=f"lora.use_dora: false, {off}",
        )
    if traits.dropout:
        yield ConfigError(
            f"with dropout there is no one weight to round to {kind}: every input would have its own",
            where="lora.lora_dropout",
            fix=f"lora.lora_dropout: 0, {off}",
        )


def unmade_aware_type(made: QuantizationConfig) -> str | None:
    """Return the key of the list that lacks the type trained for; None if its file is made."""
    if made.aware is None:
        return None
    key, kinds = ("onnx", made.onnx) if made.aware in ("int4", "int8") else ("formats", made.formats)
    return None if made.aware in kinds else f"quantization.{key}"
