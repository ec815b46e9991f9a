"""The strict, frozen base of every settings and report model in the project."""

from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """Immutable and strict: an unknown key is an error, never a silent default.

    Fields are documented by the string under them, which also becomes the
    description in ``factory schema`` and in the Prefect form.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    not_in_fingerprint: ClassVar[frozenset[str]] = frozenset()
    """Fields that change speed or place but never the result: paths, workers, devices."""
