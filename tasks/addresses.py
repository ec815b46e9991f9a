"""Addresses as people may see them."""

from typing import Any
from urllib.parse import urlsplit, urlunsplit

from core.data.sources.places import redacted


def without_credentials(url: str) -> str:
    """Take user and password out of an address that people and pages will see."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def without_secrets(value: Any) -> Any:
    """Take what opens an address out of every text of nested settings or reports, names included."""
    if isinstance(value, str):
        return redacted(value) if "://" in value else value
    if isinstance(value, dict):
        return {without_secrets(key): without_secrets(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(inner) for inner in value]
    return value
