"""What is wrong with a model folder, seen from its files alone: no framework is loaded, no weight is read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from core.errors import ModelError
from core.models.architectures import causal_classes, transformers_version
from core.models.weight_files import Flaw, TensorFiles, read_headers, weight_flaws

__all__ = ["Flaw", "folder_flaws", "require_loadable", "require_tokenizer"]

EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight",
              "backbone.embeddings.weight", "backbone.embedding.weight")  # fmt: skip
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


class Content(NamedTuple):
    """A JSON file: its object, or why there is none."""

    value: dict[str, Any]
    problem: str | None


def read_object(file: Path) -> Content:
    """Read a file that must hold one JSON object."""
    try:
        value = parse(file.read_bytes())
    except OSError:
        return Content({}, "is missing")
    except ValueError as error:
        return Content({}, f"is not JSON ({error})")
    return Content(value, None) if isinstance(value, dict) else Content({}, "is not a JSON object")


def parse(text: bytes) -> Any:
    """Parse JSON fast: a vocabulary is tens of megabytes. Configs may hold Infinity, which strict JSON has not."""
    try:
        return orjson.loads(text)
    except ValueError:
        return json.loads(text)


def folder_flaws(folder: Path) -> Iterator[Flaw]:
    """List everything that keeps a folder from being a base model.

    Looks at names, at JSON files, and at the headers of the weight files. What takes longest is reading the
    vocabulary, some tenths of a second.
    """
    yield from config_flaws(folder)
    yield from weight_flaws(folder)
    tokenizer = read_object(folder / "tokenizer.json")
    wrong = list(tokenizer_flaws(folder, tokenizer))
    yield from wrong
    yield from () if wrong else vocabulary_flaws(folder, tokenizer)


def require_loadable(folder: Path) -> None:
    """Refuse a folder whose model cannot be loaded, before anything heavy happens.

    Raises:
        ModelError: The first flaw of its config, weights or vocabulary.
    """
    for flaws in (config_flaws, weight_flaws, vocabulary_flaws):
        for flaw in flaws(folder):
            raise ModelError(flaw.what, where=str(folder), fix=flaw.fix)


def require_tokenizer(folder: Path) -> None:
    """Refuse a folder whose tokenizer is missing or broken.

    Raises:
        ModelError: The first flaw.
    """
    for flaw in tokenizer_flaws(folder):
        raise ModelError(flaw.what, where=str(folder), fix=flaw.fix)


def config_flaws(folder: Path) -> Iterator[Flaw]:
    """Find what makes ``config.json`` unusable: absent, of an unknown architecture, or not a causal model."""
    config, problem = read_object(folder / "config.json")
    adapter, _ = read_object(folder / "adapter_config.json")
    if problem == "is missing" and adapter:
        base = adapter.get("base_model_name_or_path") or "its base model"
        yield Flaw(
            "holds an adapter, not a model", f"model.name: {base}; an adapter is trained from its base"
        )
    elif problem:
        yield Flaw(f"has no readable config.json: it {problem}", "give the folder of a Hugging Face model")
    else:
        yield from _architecture_flaws(config)


def _architecture_flaws(config: dict[str, Any]) -> Iterator[Flaw]:
    known, kind = causal_classes(), config.get("model_type")
    if not known:
        return
    another = "choose a causal language model such as Qwen/Qwen3-4B or meta-llama/Llama-3.2-1B-Instruct"
    if kind not in known:
        if "auto_map" in config:
            yield Flaw(f"needs remote code for its model_type {kind}, and such code is never run", another)
        elif not isinstance(kind, str):
            yield Flaw("has a config.json without a model_type", "give the folder of a Hugging Face model")
        else:
            what = (
                f"is a {kind}, of which Transformers {transformers_version()} knows no causal language model"
            )
            yield Flaw(what, f"{another}, or a newer Transformers")
        return
    named = [str(name) for name in config.get("architectures") or []]
    fitting = {cls for classes in known.values() for cls in classes}
    if named and not any(n in fitting or n.endswith(("ForCausalLM", "LMHeadModel")) for n in named):
        yield Flaw(f"holds {', '.join(named)}, which is no causal language model", another)


def tokenizer_flaws(folder: Path, parsed: Content | None = None) -> Iterator[Flaw]:
    """Find what keeps a tokenizer from loading: none there, or files that are not what they should be.

    Args:
        folder: The model's.
        parsed: Its ``tokenizer.json``, if that was read before.
    """
    if not any((folder / name).is_file() for name in TOKENIZERS):
        yield Flaw("has no tokenizer", "put tokenizer.json and tokenizer_config.json beside the weights")
        return
    again = "download or save the tokenizer again"
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (folder / name).is_file():
            given = parsed if name == "tokenizer.json" else None
            content, problem = given or read_object(folder / name)
            if problem:
                yield Flaw(f"has a {name} that {problem}", again)
            elif name == "tokenizer.json" and not _is_tokenizer(content):
                yield Flaw("has a tokenizer.json without a vocabulary", again)


def _is_tokenizer(content: dict[str, Any]) -> bool:
    model = content.get("model")
    return isinstance(model, dict) and isinstance(model.get("vocab"), dict | list)


def vocabulary_flaws(folder: Path, parsed: Content | None = None) -> Iterator[Flaw]:
    """Compare the tokenizer's ids, the embedding's rows, and the config's vocabulary size.

    Rows beyond the tokenizer are padding and fine; ids beyond the rows would crash the first lookup.

    Args:
        folder: The model's.
        parsed: Its ``tokenizer.json``, if that was read before.
    """
    headers = read_headers(folder)
    rows = embedding_rows(headers) if headers else None
    if rows is None:
        return
    config = read_object(folder / "config.json").value
    stated = {**config, **(config.get("text_config") or {})}.get("vocab_size")
    if isinstance(stated, int) and stated != rows:
        yield Flaw(
            f"says vocab_size {stated} in config.json, but its embedding has {rows} rows",
            "take config.json and the weights from the same model",
        )
    size = count_ids((parsed or read_object(folder / "tokenizer.json")).value)
    if size > rows:
        yield Flaw(
            f"has a tokenizer of {size} tokens and a model of only {rows}: they do not belong together",
            "take the tokenizer that came with the model, or resize the model's embeddings first",
        )


def embedding_rows(tensors: TensorFiles) -> int | None:
    """Return v, the rows of the input embedding, or None if it is not recognised by its name."""
    shapes = [
        info.shape
        for name, info in tensors.items()
        if name.endswith(EMBEDDINGS) and len(info.shape) == 2 and "vision" not in name
    ]
    return shapes[0][0] if shapes else None


def count_ids(tokenizer: dict[str, Any]) -> int:
    """Return one more than the largest token id of a parsed ``tokenizer.json``; 0 if there is none."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    ids = list(vocabulary.values()) if isinstance(vocabulary, dict) else list(range(len(vocabulary or ())))
    added = tokenizer.get("added_tokens")
    ids += [token.get("id", -1) for token in added or () if isinstance(token, dict)]
    return 1 + max((each for each in ids if isinstance(each, int)), default=-1)
