"""File systems of other machines, opened with sane timeouts and errors a person understands."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import urlsplit

import fsspec

from core.data.sources.places import redacted, without_secrets
from core.errors import DataError

CONNECT_SECONDS = 10
READ_SECONDS = 30
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "sftp": "paramiko",
    "ssh": "paramiko",
    "smb": "smbprotocol",
}
_SERVERS = frozenset({"ftp", "sftp", "ssh", "smb"})
"""Protocols whose file systems are half built, and complain on stderr, when the address names no server."""
_ACCESS = (
    "log in with the tools of the provider; for a public S3 bucket set FSSPEC_S3_ANON=true in the environment"
)
T = TypeVar("T")


def connect(url: str) -> tuple[Any, str]:
    """Return the file system of an address, and the path on it.

    Raises:
        DataError: If the protocol is unknown, the package for it is missing, or the server cannot be reached:
            some protocols log in at once.
    """
    protocol = url.split("://", 1)[0].lower()
    where = redacted(url)
    if "::" in url:
        raise DataError("chained addresses cannot be read", where=where, fix="name the file itself")
    try:
        with told(url, keep=(ImportError, ValueError)):
            if protocol in _SERVERS and not urlsplit(url).hostname:
                raise ValueError("names no server")
            filesystem, path = fsspec.core.url_to_fs(url, **_options(protocol))
            # Listings of an earlier look in this process may be stale.
            filesystem.invalidate_cache()
    except ImportError as error:
        package = _PACKAGES.get(protocol)
        fix = f"pip install {package}" if package else without_secrets(str(error), url)
        raise DataError(f"{protocol}:// needs a package that is missing", where=where, fix=fix) from None
    except ValueError as error:
        what = f"{protocol}:// is no known protocol" if "not known" in str(error) else "is no usable address"
        raise DataError(what, where=where, fix="use s3://, gs://, https:// or a path") from None
    return filesystem, str(path)


def _options(protocol: str) -> dict[str, Any]:
    if protocol in ("http", "https"):
        import aiohttp

        limits = aiohttp.ClientTimeout(
            total=None, connect=CONNECT_SECONDS, sock_connect=CONNECT_SECONDS, sock_read=READ_SECONDS
        )
        # Logins come from ~/.netrc and proxies from the environment, as with every other download tool.
        return {"client_kwargs": {"timeout": limits, "trust_env": True}}
    if protocol in ("s3", "s3a"):
        retries = {"max_attempts": 2}
        seconds = {"connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS}
        return {"config_kwargs": {**seconds, "retries": retries}}
    if protocol in ("sftp", "ssh"):
        return {"timeout": CONNECT_SECONDS, "banner_timeout": READ_SECONDS, "auth_timeout": READ_SECONDS}
    return {"timeout": READ_SECONDS} if protocol in ("gs", "gcs", "ftp") else {}


@contextmanager
def told(url: str, *, keep: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Turn whatever a network library raises into one message without secrets.

    Args:
        url: The address that is read.
        keep: Errors that the caller tells itself.

    Raises:
        DataError: Instead of any other exception.
    """
    kept: tuple[type[Exception], ...] = (DataError, *keep)
    try:
        yield
    except kept:
        raise
    except Exception as error:  # noqa: BLE001 - every backend raises its own kinds
        # The original error may quote the address with its password, so it is not kept as the cause.
        raise _unreachable(error, url) from None


def _unreachable(error: Exception, url: str) -> DataError:
    cause = error.__cause__ or error
    status = getattr(cause, "status", None)
    where = redacted(url)
    if status == 404 or (isinstance(error, FileNotFoundError) and cause is error):
        return DataError("no such file", where=where, fix="check the spelling of the address")
    if status in (401, 403) or isinstance(error, PermissionError) or "Credentials" in type(cause).__name__:
        return DataError("access is denied", where=where, fix=_ACCESS)
    words = without_secrets(str(cause), url).split("\n")[0][:200] or type(cause).__name__
    return DataError(
        f"cannot be reached: {words}", where=where, fix="check the address and the network, then run again"
    )


class Guarded(io.RawIOBase):
    """A file on a network whose errors are told by ``told``."""

    def __init__(self, file: Any, url: str) -> None:
        """Wrap an open file."""
        self._file, self._url = file, url

    def read(self, size: int = -1) -> bytes:
        """Read some bytes."""
        return bytes(self._ask(self._file.read, size))

    def seek(self, offset: int, whence: int = 0) -> int:
        """Jump to a place."""
        return int(self._ask(self._file.seek, offset, whence))

    def tell(self) -> int:
        """Return the place."""
        return int(self._ask(self._file.tell))

    def seekable(self) -> bool:
        """Tell whether one can jump; files of servers without ranges say yes and then refuse."""
        try:
            here = self._file.tell()
            self._file.seek(here + 1)
            self._file.seek(here)
        except (ValueError, OSError):
            return False
        return True

    def readable(self) -> bool:
        """Tell that one can read."""
        return True

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            self._file.close()
        super().close()

    def _ask(self, call: Callable[..., T], *values: int) -> T:
        with told(self._url):
            return call(*values)
