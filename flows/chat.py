"""Talk to the model a workspace has released."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.artifacts import is_unchanged
from core.config import Frozen
from core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from core.deployment.llama import LlamaRuntime

HELP = "Ask a question. /clear forgets the conversation, /quit ends it."


class ChatOptions(Frozen):
    """What was asked for on the command line."""

    prompt: str | None = None
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


def chat_with(workspace: Path, options: ChatOptions) -> int:
    """Answer one prompt, or hold a conversation on the terminal; return the exit code."""
    from core.deployment.llama import LlamaRuntime

    settings = released_model(workspace)
    with LlamaRuntime(
        settings.gguf, context_length=settings.context_length, threads=settings.threads
    ) as runtime:
        conversation = Conversation(runtime, settings, options)
        if options.prompt is not None:
            conversation.say(options.prompt)
            return 0
        return converse(conversation)


class Served(Frozen):
    """A released model and how it wants to be run."""

    gguf: Path
    threads: int
    context_length: int
    temperature: float
    max_tokens: int
    system_prompt: str | None


def released_model(workspace: Path) -> Served:
    """Find the model that passed every gate of this workspace.

    Raises:
        ConfigError: If there is none, or its file is not the one that was released.
    """
    release = _json(workspace / ".factory/release.json")
    config = _json(workspace / "bundle/model-config.json")
    if not release or not config:
        raise ConfigError(
            "no released model here",
            where=str(workspace),
            fix="finish a run first: factory run CONFIG --workspace " + str(workspace),
        )
    bundle = workspace / "bundle"
    if not is_unchanged(bundle, release["digest"]):
        raise ConfigError(
            "the bundle is not the one that passed the gates",
            where=str(bundle),
            fix="run the factory again; see factory gates " + str(workspace),
        )
    return Served(
        gguf=bundle / release["gguf"],
        threads=release["threads"],
        context_length=release["context_length"],
        temperature=config["temperature"],
        max_tokens=config["max_tokens"],
        system_prompt=config["system_prompt"],
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content


class Conversation:
    """Messages so far, and the model that answers."""

    def __init__(self, runtime: "LlamaRuntime", served: Served, options: ChatOptions) -> None:
        """Begin with the system message, if there is one."""
        self.runtime = runtime
        self.temperature = served.temperature if options.temperature is None else options.temperature
        self.max_tokens = options.max_tokens or served.max_tokens
        system = options.system or served.system_prompt
        self.start = [{"role": "system", "content": system}] if system else []
        self.messages = list(self.start)

    def clear(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self.start)

    def say(self, text: str) -> None:
        """Answer one message, printing tokens as they come."""
        self.messages.append({"role": "user", "content": text})
        answer = self.runtime.generate(
            self.messages, max_new_tokens=self.max_tokens, temperature=self.temperature, stream=_print
        )
        _print("\n")
        self.messages.append({"role": "assistant", "content": answer.text})

    def say_within(self, text: str) -> None:
        """Answer; when the window is full, forget the oldest turns first and say so."""
        while True:
            try:
                self.say(text)
            except DataError:
                self.messages.pop()
                if len(self.messages) <= len(self.start):
                    raise
                del self.messages[len(self.start) : len(self.start) + 2]
                _print("(the window is full: the oldest question and answer are forgotten)\n")
            else:
                return


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def converse(conversation: Conversation) -> int:
    """Read questions until the end of input or /quit."""
    _print(HELP + "\n")
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            _print("\n")
            return 0
        if text in ("/quit", "/exit"):
            return 0
        if text == "/clear":
            conversation.clear()
        elif text:
            conversation.say_within(text)
