"""Talk to the model a workspace has released, or to its base with adapters of one's choice."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

from core.artifacts import is_unchanged
from core.config import Frozen
from core.errors import ConfigError, DataError
from tasks.workspace import read_object

if TYPE_CHECKING:
    from core.deployment.llama import LlamaRuntime
    from core.deployment.switching import AdapterRuntime

Runtime = Union["LlamaRuntime", "AdapterRuntime"]

HELP = "Ask a question. /clear forgets the conversation, /quit ends it."
SWITCHING = "/adapter lists the adapters, /adapter NAME switches, /adapter none asks the bare base."
NO_ADAPTERS = "no adapters here; start with: factory chat WORKSPACE --adapter NAME=FOLDER"


class ChatOptions(Frozen):
    """What was asked for on the command line."""

    adapters: tuple[str, ...] = ()
    """NAME=FOLDER each; with any, the base answers through PyTorch instead of the released file."""
    prompt: str | None = None
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None


def chat_with(workspace: Path, options: ChatOptions) -> int:
    """Answer one prompt, or hold a conversation on the terminal; return the exit code."""
    if options.adapters:
        return _talk_to_adapters(workspace, options)
    from core.deployment.llama import LlamaRuntime

    settings = released_model(workspace)
    with LlamaRuntime(
        settings.gguf, context_length=settings.context_length, threads=settings.threads
    ) as runtime:
        return _talk(Conversation(runtime, settings.habits, options), options.prompt)


def _talk_to_adapters(workspace: Path, options: ChatOptions) -> int:
    from flows.chat_adapters import load_runtime, named_folders, switched

    folders = named_folders(options.adapters)
    runtime = load_runtime(workspace, folders)
    conversation = Conversation(
        runtime, habits_of(read_object(workspace / "bundle/model-config.json")), options
    )
    return _talk(conversation, options.prompt, lambda wanted: switched(runtime, wanted))


def _talk(
    conversation: "Conversation", prompt: str | None, switch: Callable[[str], str] | None = None
) -> int:
    if prompt is None:
        return converse(conversation, switch)
    conversation.say(prompt)
    return 0


class Habits(Frozen):
    """How a model wants to be asked."""

    temperature: float = 0.0
    max_tokens: int = 256
    system_prompt: str | None = None


class Served(Frozen):
    """A released model and how it wants to be run."""

    gguf: Path
    threads: int
    context_length: int
    habits: Habits


def released_model(workspace: Path) -> Served:
    """Find the model that passed every gate of this workspace.

    Raises:
        ConfigError: If there is none, or its file is not the one that was released.
    """
    release = read_object(workspace / ".factory/release.json")
    config = read_object(workspace / "bundle/model-config.json")
    if not release or not config:
        raise ConfigError(
            "no released model here",
            where=str(workspace),
            fix="finish a run first: factory run CONFIG --workspace " + str(workspace),
        )
    bundle = workspace / "bundle"
    if not is_unchanged(bundle, release["digest"]):
        from core.deployment.bundle import verify_bundle

        wrong = next(iter(verify_bundle(bundle)), "its manifest is another one")
        raise ConfigError(
            f"the bundle is not the one that passed the gates ({wrong})",
            where=str(bundle),
            fix="run the factory again; see factory gates " + str(workspace),
        )
    return Served(
        gguf=bundle / release["gguf"],
        threads=release["threads"],
        context_length=release["context_length"],
        habits=habits_of(config),
    )


def habits_of(config: dict[str, Any]) -> Habits:
    """Pick out of a bundle's model-config.json how to ask; of an empty one, the defaults."""
    return Habits(**{name: config[name] for name in Habits.model_fields if name in config})


class Conversation:
    """Messages so far, and the model that answers."""

    def __init__(self, runtime: Runtime, habits: Habits, options: ChatOptions) -> None:
        """Begin with the system message, if there is one."""
        self.runtime = runtime
        self.temperature = habits.temperature if options.temperature is None else options.temperature
        self.max_tokens = options.max_tokens or habits.max_tokens
        system = options.system or habits.system_prompt
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


def converse(conversation: Conversation, switch: Callable[[str], str] | None = None) -> int:
    """Read questions until the end of input or /quit.

    Args:
        conversation: What answers.
        switch: Does what follows /adapter and says so in one line.
    """
    _print(f"{HELP}\n{SWITCHING}\n{switch('')}\n" if switch else HELP + "\n")
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
        elif text.split(maxsplit=1)[:1] == ["/adapter"]:
            _print((switch(text.removeprefix("/adapter").strip()) if switch else NO_ADAPTERS) + "\n")
        elif text:
            conversation.say_within(text)
