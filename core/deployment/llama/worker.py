"""The process that runs llama.cpp: requests in on stdin, replies out on stdout, one JSON object per line.

    python -m core.deployment.llama.worker MODEL.gguf --context 1024 --threads 1

llama.cpp may abort the whole process; here it takes nobody with it. Everything it
prints goes to stderr. The process ends when stdin closes, also in the middle of a
request, so that it never outlives whoever started it.

Requests: {"op": "encode", "messages"} | {"op": "tokenize", "text", "add_special"} |
{"op": "generate", "ids", "max_new_tokens", "temperature", "seed"} |
{"op": "logits", "ids", "first", "path"}, which writes float32 rows to that file.
Replies: any number of {"text"}, then {"done"} or {"error": kind, "message", "fix"}.
"""

import argparse
import json
import os
import queue
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from jinja2 import TemplateError

from core.deployment.llama.engine import Engine, Refused
from core.deployment.llama.spelling import KEY, Spelling
from core.deployment.llama.template import render

Reply = Callable[[dict[str, Any]], None]


def main() -> None:
    """Load the file named on the command line and answer requests until stdin closes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--context", type=int, required=True)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--exact", action="store_true")
    options = parser.parse_args()
    out = _claim_stdout()
    requests = _listen()
    _attempt(lambda reply: _serve(options, requests, reply), _replier(out))


def _claim_stdout() -> TextIO:
    """Keep the real stdout for replies and send everything else printed there to stderr."""
    private = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    return private


def _listen() -> queue.Queue[dict[str, Any]]:
    requests: queue.Queue[dict[str, Any]] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            requests.put(json.loads(line))
        # Nobody is left to answer; a running computation must not keep the process alive.
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return requests


def _replier(out: TextIO) -> Reply:
    def reply(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    return reply


def _attempt(action: Callable[[Reply], None], reply: Reply) -> None:
    try:
        action(reply)
    except Refused as error:
        reply({"error": error.kind, "message": str(error), "fix": error.fix})
    except TemplateError as error:
        reply({"error": "data", "message": f"the chat template refused the conversation: {error}", "fix": ""})


def _serve(options: argparse.Namespace, requests: queue.Queue[dict[str, Any]], reply: Reply) -> None:
    engine = Engine(options.model, options.context, options.threads, options.exact)
    spelling = _spelling(engine)
    engine.stops = frozenset(spelling.settings["stops"])
    reply({"done": {"vocabulary": engine.size}})
    while True:
        request = requests.get()
        operation = OPERATIONS[request["op"]]
        _attempt(lambda reply, run=operation, asked=request: run(engine, spelling, asked, reply), reply)  # type: ignore[misc]


def _spelling(engine: Engine) -> Spelling:
    rules = engine.metadata(KEY)
    # Files of other makers say only which tokens are control tokens.
    return Spelling(engine.control_tokens()) if rules is None else Spelling.parse(rules)


def _encode(engine: Engine, spelling: Spelling, request: dict[str, Any], reply: Reply) -> None:
    template = engine.metadata("tokenizer.chat_template")
    if template is None:
        raise Refused(
            "model",
            "the file has no chat template",
            "give the tokenizer a chat template and write the file again",
        )
    turns = spelling.control.cut_turns(request["messages"])
    prompt = render(template, turns, engine.special_tokens())
    # The template writes the first token itself; adding special tokens would double it.
    reply({"done": {"ids": spelling.encode(prompt, lambda text: engine.tokenize(text, False))}})


def _tokenize(engine: Engine, spelling: Spelling, request: dict[str, Any], reply: Reply) -> None:
    reply({"done": {"ids": engine.tokenize(spelling.spelled(request["text"]), request["add_special"])}})


def _generate(engine: Engine, spelling: Spelling, request: dict[str, Any], reply: Reply) -> None:
    result = engine.generate(
        request["ids"],
        request["max_new_tokens"],
        request["temperature"],
        request["seed"],
        lambda text: reply({"text": text}) if text else None,
    )
    reply({"done": result._asdict()})


def _logits(engine: Engine, spelling: Spelling, request: dict[str, Any], reply: Reply) -> None:
    # Through a file: rows over a large vocabulary are megabytes each, and JSON would triple them.
    with Path(request["path"]).open("wb") as stream:
        for row in engine.logits(request["ids"], request["first"]):
            stream.write(row)
    reply({"done": {}})


OPERATIONS: dict[str, Callable[[Engine, Spelling, dict[str, Any], Reply], None]] = {
    "encode": _encode,
    "tokenize": _tokenize,
    "generate": _generate,
    "logits": _logits,
}

if __name__ == "__main__":
    main()
