"""The row shapes people have, and how each becomes a conversation or a plain text."""

from core.data.formats.convert import ACCEPTED, Converted, convert, describe, detect
from core.data.formats.reasons import UNKNOWN_SHAPE, Rejected

__all__ = ["ACCEPTED", "UNKNOWN_SHAPE", "Converted", "Rejected", "convert", "describe", "detect"]
