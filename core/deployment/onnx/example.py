"""Ask the model in this folder a question, with ONNX Runtime alone.

    pip install onnxruntime tokenizers jinja2 numpy
    python run.py "What is 3 + 4?"

Add --system TEXT for instructions and --max-new-tokens N for longer answers.
"""

import argparse
import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnxruntime
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
CUT = "\udbff"
"""Half of a surrogate pair: no text that can be written to a file contains it."""


def read(name: str) -> dict[str, Any]:
    """Read a JSON file of this folder; one that is not there holds nothing."""
    file = HERE / name
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def refuse(message: str) -> NoReturn:
    """Let the chat template refuse a conversation."""
    raise SystemExit(f"the chat template refuses this conversation: {message}")


def render(messages: list[dict[str, str]]) -> str:
    """Write a conversation as the model was taught it, up to where its answer starts."""
    config = read("tokenizer_config.json")
    names = ("bos_token", "eos_token", "pad_token", "unk_token")
    found = {name: config.get(name) for name in names}
    tokens = {name: token["content"] if isinstance(token, dict) else token for name, token in found.items()}
    rules = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    rules.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    rules.globals["raise_exception"] = refuse
    rules.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    template = rules.from_string((HERE / "chat_template.jinja").read_text(encoding="utf-8"))
    given = {name: token for name, token in tokens.items() if token is not None}
    return template.render(messages=messages, add_generation_prompt=True, tools=None, documents=None, **given)


def cut(tokenizer: Tokenizer, text: str) -> str:
    """Put a cut into every control token that a text merely spells out, for it must stay text."""
    known = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special]
    names = sorted((name for name in known if len(name) > 1), key=len, reverse=True)
    if not names:
        return text
    return re.sub(f"(?={'|'.join(map(re.escape, names))}).", rf"\g<0>{CUT}", text, flags=re.DOTALL)


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the tokens of a rendered conversation, none of which reaches across a cut."""

    def ids(piece: str) -> list[int]:
        # The template writes the first token itself; adding special tokens would double it.
        return list(tokenizer.encode(piece, add_special_tokens=False).ids)

    first, *others = text.split(CUT)
    # Some tokenizers put a space before any text. A line break, dropped again, takes its place.
    anchor = "\n" if others and len(ids("\n")) > 1 else ""
    skipped = len(ids(anchor)) if anchor else 0
    return [*ids(first), *(token for piece in others for token in ids(anchor + piece)[skipped:])]


def switch_length() -> int:
    """Return the length past which a model turns all positions by other angles, and a cache is void; 0: none."""
    config = read("config.json")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type")) != "longrope":
        return 0
    name = "original_max_position_embeddings"
    return int(rope.get(name, config.get(name)) or 0)


def generate(session: Any, prompt: list[int], stops: set[int], most: int) -> list[int]:
    """Continue a prompt with the likeliest token each time."""
    past = [each for each in session.get_inputs() if each.name.startswith("past_key_values")]
    empty = {each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), dtype=np.float32) for each in past}
    cache, ids, made, seen, switch = empty, prompt, list[int](), 0, switch_length()
    while len(made) < most:
        if 0 < seen <= switch < seen + len(ids):
            cache, ids, seen = empty, prompt + made, 0
        total = seen + len(ids)
        feeds = {
            "input_ids": np.array([ids], dtype=np.int64),
            "attention_mask": np.ones((1, total), dtype=np.int64),
            "position_ids": np.arange(seen, total, dtype=np.int64)[None],
        }
        logits, *present = session.run(None, {**feeds, **cache})
        cache = dict(zip(cache, present, strict=True))
        token = int(logits[0, -1].argmax())
        if token in stops:
            break
        made.append(token)
        ids, seen = [token], total
    return made


def main() -> None:
    """Answer the question of the command line."""
    options = argparse.ArgumentParser(description="Ask the model in this folder a question.")
    options.add_argument("question")
    options.add_argument("--system", default="")
    options.add_argument("--max-new-tokens", type=int, default=256)
    asked = options.parse_args()
    tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
    said = [("system", asked.system)] * bool(asked.system) + [("user", asked.question)]
    messages = [{"role": role, "content": cut(tokenizer, text)} for role, text in said]
    prompt = encode(tokenizer, render(messages))
    stops = read("generation_config.json").get("eos_token_id", [])
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    ends = set(stops if isinstance(stops, list) else [stops])
    made = generate(session, prompt, ends, asked.max_new_tokens)
    sys.stdout.write(tokenizer.decode(made).strip() + "\n")


if __name__ == "__main__":
    main()
