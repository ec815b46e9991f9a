"""The only module that talks to the datasets library and the hub's client."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import huggingface_hub
import pyarrow as pa
from datasets.exceptions import DatasetNotFoundError
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES

from core.data.sources.hub_errors import is_no_network, unknown
from core.errors import DataError

SECONDS = 10
_BATCH = 1000
_COMMIT = re.compile(r"[0-9a-f]{40}")


class Resolved(NamedTuple):
    """A dataset with its commit."""

    repository: str
    commit: str
    is_cached_only: bool
    """The hub could not be asked."""


def loaders() -> frozenset[str]:
    """Return the names that the library takes for one of its own file readers instead of a dataset."""
    return frozenset(_PACKAGED_DATASETS_MODULES)


def resolve(repository: str, config: str | None, revision: str | None) -> Resolved:
    """Return the full name and the commit of a dataset.

    Raises:
        DataError: If the hub cannot be asked and the dataset was never loaded here.
    """
    try:
        found = huggingface_hub.HfApi().dataset_info(repository, revision=revision, timeout=SECONDS)
    except Exception as error:
        if not is_no_network(error):
            raise
        return Resolved(repository, _cached_commit(repository, config, revision), is_cached_only=True)
    if not found.sha:
        raise DataError("the hub names no commit", where=f"hf:{repository}", fix="give a revision")
    return Resolved(found.id, found.sha, is_cached_only=False)


def _cached_commit(repository: str, config: str | None, revision: str | None) -> str:
    owner, _, name = repository.rpartition("/")
    stem = "___".join([*([owner] if owner else []), datasets.naming.camelcase_to_snakecase(name)])
    root = Path(datasets.config.HF_DATASETS_CACHE) / stem
    builds = sorted(
        root.glob(f"{config or '*'}/*/*/dataset_info.json"), key=lambda path: path.stat().st_mtime
    )
    commits = [path.parent.name for path in builds if _COMMIT.fullmatch(path.parent.name)]
    if revision and _COMMIT.fullmatch(revision):
        commits = [commit for commit in commits if commit == revision]
    if commits:
        return commits[-1]
    raise DataError(
        "the Hugging Face hub cannot be reached, and the dataset is not in its cache",
        where=f"hf:{repository}" + (f":{config}" if config else ""),
        fix="check the network (and HF_HUB_OFFLINE), or name a local copy: hf:./folder",
    )


def load_hub(found: Resolved, config: str | None, split: str, *, streaming: bool) -> Any:
    """Return a split of a dataset at exactly the commit that was resolved.

    Raises:
        DataError: If there is no such config or split, or another commit would be read.
    """
    builder = _builder(found.repository, config, revision=found.commit, cache_dir=None)
    if builder.hash != found.commit:
        # The library falls back to whatever it has cached if anything goes wrong.
        raise DataError(
            f"commit {found.commit[:12]} cannot be loaded, only the cached {str(builder.hash)[:12]}",
            where=f"hf:{found.repository}",
            fix="check the network, or give the cached commit as revision",
        )
    return _split_of(builder, split, streaming, f"hf:{found.repository}")


def load_folder(folder: Path, config: str | None, split: str, *, streaming: bool, cache: Path) -> Any:
    """Return a split of a dataset in a folder.

    Raises:
        DataError: If it holds no dataset, or there is no such config or split.
    """
    where = f"hf:{folder}"
    is_saved = any((folder / name).is_file() for name in ("dataset_dict.json", "state.json"))
    if is_saved:
        if config:
            raise unknown("config", config, [], where)
        return _saved_split(datasets.load_from_disk(str(folder)), split, where)
    return _split_of(_builder(str(folder), config, cache_dir=str(cache)), split, streaming, where)


def tables(dataset: Any, most: int | None) -> Iterator[pa.Table]:
    """Yield a dataset as Arrow tables, without holding more than one of them.

    Args:
        dataset: A ``Dataset`` or an ``IterableDataset``.
        most: Rows needed; a stream is asked for no more.
    """
    size = _BATCH if most is None else min(_BATCH, most)
    yield from dataset.with_format("arrow").iter(batch_size=size)


def _builder(path: str, config: str | None, **settings: Any) -> Any:
    try:
        return datasets.load_dataset_builder(path, name=config, **settings)
    except ValueError as error:
        if "onfig" not in str(error) or isinstance(error, DatasetNotFoundError):
            raise
        names = datasets.get_dataset_config_names(path, revision=settings.get("revision"))
        raise unknown("config", config or "(none)", names, f"hf:{path}") from error


def _split_of(builder: Any, split: str, streaming: bool, where: str) -> Any:
    if streaming:
        # Streams have no positions, so only whole splits can be named.
        return _checked_split(builder.as_streaming_dataset(), split, where)
    builder.download_and_prepare()
    sizes = {name: info.num_examples for name, info in builder.info.splits.items()}
    _instructions(split, sizes, where)
    return builder.as_dataset(split=split)


def _checked_split(parts: Any, split: str, where: str) -> Any:
    if split not in parts:
        raise unknown("split", split, list(parts), where)
    return parts[split]


def _saved_split(saved: Any, split: str, where: str) -> Any:
    if isinstance(saved, datasets.Dataset):
        saved = {str(saved.split or "train"): saved}
    picks = _instructions(split, {name: len(part) for name, part in saved.items()}, where)
    parts = [saved[pick.splitname].select(range(pick.from_ or 0, _end(pick, saved))) for pick in picks]
    return parts[0] if len(parts) == 1 else datasets.concatenate_datasets(parts)


def _end(pick: Any, saved: Any) -> int:
    return len(saved[pick.splitname]) if pick.to is None else int(pick.to)


def _instructions(split: str, sizes: dict[str, int], where: str) -> Any:
    try:
        return datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    except (ValueError, AssertionError) as error:
        raise unknown("split", split, list(sizes), where) from error
