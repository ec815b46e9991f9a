"""Well-known pretraining sets under short names, and the field that holds a text."""

from collections.abc import Iterable
from typing import NamedTuple

TEXT_FIELDS = ("text", "content", "body", "article", "document")
"""Names of the field that holds a plain text, in the order they are looked for."""


class Preset(NamedTuple):
    """Where a well-known dataset lies on the hub."""

    repository: str
    config: str | None
    text_field: str
    revision: str | None = None
    """The branch to read; the hub keeps Parquet copies of sets that once needed a script of their own."""


_CONVERTED = "refs/convert/parquet"
PRESETS: dict[str, Preset] = {
    "wikitext": Preset("Salesforce/wikitext", "wikitext-103-raw-v1", "text"),
    "c4": Preset("allenai/c4", "en", "text"),
    "openwebtext": Preset("Skylion007/openwebtext", None, "text"),
    "wikipedia": Preset("wikimedia/wikipedia", "20231101.en", "text"),
    "bookcorpus": Preset("rojagtap/bookcorpus", None, "text"),
    "redpajama": Preset("togethercomputer/RedPajama-Data-1T-Sample", None, "text", _CONVERTED),
}
"""Datasets by the name that follows ``hf:``."""


def find_text_field(columns: Iterable[str]) -> str | None:
    """Return the column that holds a plain text, None if no name says so.

    An exact name wins over one in other letters, ``text`` over ``content`` and so on.
    """
    names = list(columns)
    for wanted in TEXT_FIELDS:
        found = wanted if wanted in names else next((n for n in names if n.lower() == wanted), None)
        if found is not None:
            return found
    return None
