"""What a source's path names: files on this machine, an address on a network, or a dataset of the hub."""

import re
from typing import Literal
from urllib.parse import unquote, urlsplit

Kind = Literal["files", "remote", "hub"]

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
# Everything between :// and @ is a user name and password; everything from ? on may be a signature.
_LOGIN = re.compile(r"(?<=://)[^/\s@]*(?:@[^/\s@]*)*@")
_QUERY = re.compile(r"(://[^\s?#'\"<>]*)[?#][^\s'\"<>)]*")
HIDDEN = "[hidden]"


def kind_of(source: str) -> Kind:
    """Tell what a source's path names."""
    if source.startswith("hf:") and not source.startswith("hf://"):
        return "hub"
    return "remote" if _SCHEME.match(source) and not source.startswith("file://") else "files"


def local_path(source: str) -> str:
    """Return the path of a source on this machine; ``file://`` is taken away."""
    return unquote(source.removeprefix("file://")) if source.startswith("file://") else source


def redacted(text: str) -> str:
    """Return a text without the logins and query strings of the addresses in it.

    Use it on whatever may hold a source's path before a person or a file gets to see it.
    """
    return _QUERY.sub(r"\1", _LOGIN.sub("", text))


def without_secrets(text: str, url: str) -> str:
    """Return a text, such as an error of a network library, in which nothing secret of an address is left."""
    text = redacted(text)
    try:
        parts = urlsplit(url)
        secrets = [parts.password, parts.username, parts.query]
        secrets += [value.partition("=")[2] for value in parts.query.split("&")]
    except ValueError:
        secrets = []
    for secret in secrets:
        for form in {secret or "", unquote(secret or "")}:
            if len(form) > 3:
                text = text.replace(form, HIDDEN)
    return text
