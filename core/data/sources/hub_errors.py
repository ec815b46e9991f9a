"""What goes wrong with datasets of the hub, in one sentence each."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from core.data.sources.places import redacted
from core.errors import DataError


@contextmanager
def told(source: str) -> Iterator[None]:
    """Turn whatever the libraries of the hub raise into one message.

    Raises:
        DataError: Instead of any other exception.
    """
    try:
        yield
    except (DataError, GeneratorExit):
        raise
    except Exception as error:
        raise _explained(error, source) from error


def unknown(kind: str, name: str, known: Sequence[str], where: str) -> DataError:
    """Return the error for a config or split that does not exist.

    Args:
        kind: config or split.
        name: The one asked for.
        known: Those that exist.
        where: The dataset.
    """
    there = ", ".join(sorted(known)[:20]) or "none"
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    fix = (
        "write hf:NAME:CONFIG"
        if kind == "config"
        else "set split to one of them, or to a part such as train[:10%]"
    )
    return DataError(f"has no {kind} {name!r}; there are {there}{more}", where=where, fix=fix)


def is_no_network(error: BaseException) -> bool:
    """Tell whether an error means that the hub could not be asked at all.

    By name, because the client has changed its HTTP library more than once.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return bool(kinds & {"ConnectionError", "TransportError", "OfflineModeIsEnabled", "TimeoutError"})


def _explained(error: Exception, source: str) -> DataError:
    kinds = {kind.__name__ for kind in type(error).__mro__}
    words = redacted((str(error).strip() or type(error).__name__).split("\n")[0])[:300].rstrip(".")
    if "GatedRepoError" in kinds or "gated" in words:
        fix = "accept its conditions on huggingface.co, then run: hf auth login"
        return DataError("access to the dataset must be asked for", where=source, fix=fix)
    if "RevisionNotFoundError" in kinds:
        return DataError("has no such revision", where=source, fix="give a commit, tag or branch that exists")
    if kinds & {"RepositoryNotFoundError", "DatasetNotFoundError", "HFValidationError"}:
        fix = "check the spelling (hf:owner/name); for a private one run: hf auth login"
        return DataError("no such dataset on the hub", where=source, fix=fix)
    if "scripts are no longer supported" in words:
        fix = "set revision: refs/convert/parquet, where the hub keeps a copy as Parquet"
        return DataError("needs a program of its own to load, which is never run", where=source, fix=fix)
    if kinds & {"DataFilesNotFoundError", "EmptyDatasetError", "FileNotFoundError"}:
        return DataError(
            f"holds no data files: {words}", where=source, fix="name a folder or dataset with data"
        )
    if is_no_network(error):
        return DataError(f"the hub cannot be reached: {words}", where=source, fix="check the network")
    return DataError(f"cannot be loaded: {words}", where=source, fix="check it with datasets.load_dataset")
