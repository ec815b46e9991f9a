"""The strict, frozen bases of every settings and report model in the project."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable and strict: an unknown key is an error, never a silent default."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset()
    """Fields that change speed or place but never the result: paths, workers, devices."""


class Block(Frozen):
    """A block of the run config.

    The string under a field becomes its description in ``factory schema`` and in the Prefect
    form. Reading it takes milliseconds per class, which is why reports are plain ``Frozen``.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)
