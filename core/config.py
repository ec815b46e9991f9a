"""The strict, frozen bases of every settings and report model in the project."""

import re
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

_LOGIN = re.compile(r"://[^/\s?#]*@")
_SIGNED = re.compile(
    r"[?&](?:[\w-]*(?:signature|token|secret|password|credential)|sig|(?:api_?|access_?)?key)=", re.IGNORECASE
)


def without_secrets(value: str) -> str:
    """Return an address that holds no password or signature.

    Settings are recorded in MLflow, Prefect and the report: a secret in them would be published.

    Raises:
        ValueError: If it holds one; the message does not repeat it.
    """
    if _LOGIN.search(value) or _SIGNED.search(value):
        raise ValueError(
            "holds a password or signature, which would be recorded with the run; leave it out and let the "
            "environment sign in (AWS_ACCESS_KEY_ID, GOOGLE_APPLICATION_CREDENTIALS, ~/.netrc, "
            "evaluation.judge.key_variable), or download first"
        )
    return value


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
