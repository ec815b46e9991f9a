"""The inference page: how to call the model, with questions it was really asked."""

import json
import shlex
from typing import Any, Literal

from pydantic import Field

from core.config import Frozen
from core.deployment.templates import render_page


class ApiMessage(Frozen):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Example(Frozen):
    """A question from the test split, as it was asked, and what the shipped file answered."""

    messages: tuple[ApiMessage, ...] = Field(min_length=1)
    """The conversation up to the answer; nothing was put before it."""
    answer: str
    expected: str | None = None
    """The reference answer, where it may be shown."""

    @property
    def prompt(self) -> str:
        """What was said last."""
        return self.messages[-1].content

    @property
    def shown(self) -> str:
        """The bare question, or the whole conversation where there is more to it."""
        return self.prompt if len(self.messages) == 1 else _json(self.request)

    @property
    def request(self) -> list[dict[str, str]]:
        """The messages as a request holds them."""
        return [{"role": message.role, "content": message.content} for message in self.messages]


class PytorchForm(Frozen):
    """The same model as a folder for PyTorch, beside the bundle."""

    path: str
    """Inside the run's workspace."""
    measured: str
    """What it scored, in one sentence."""


class ApiFacts(Frozen):
    """What a caller needs to know."""

    name: str
    """Also the name under which Ollama knows the model."""
    gguf_name: str
    """File name inside the bundle."""
    gguf_type: str
    measured: str = ""
    """What the file scored, in one sentence."""
    context_length: int
    max_tokens: int
    temperature: float
    system_prompt: str | None = None
    stop_tokens: tuple[str, ...]
    languages: tuple[str, ...]
    domain: str
    limits: tuple[str, ...] = ()
    """What callers must expect, such as the card's limitations."""
    pytorch: tuple[PytorchForm, ...] = ()
    examples: tuple[Example, ...] = Field(min_length=1)
    """The first one is the request that the page shows in full."""


class HandoffConfig(Frozen):
    """The model's settings for the program that will call it: ``model-config.json``."""

    model_id: str = Field(min_length=1)
    model_type: Literal["causal-lm"] = "causal-lm"
    base_model: str = Field(min_length=1)
    quantization: str = Field(min_length=1)
    max_tokens: int = Field(ge=1)
    temperature: float = Field(ge=0)
    system_prompt: str | None = None
    supported_languages: tuple[str, ...]
    domain: str
    validated_use_cases: tuple[str, ...]
    """Only uses with a passed evaluation behind them; empty if there are none."""


def build_handoff(facts: ApiFacts, *, base_model: str, validated_use_cases: tuple[str, ...]) -> HandoffConfig:
    """Make the handoff config from the facts of the page, so that the two cannot disagree.

    Args:
        facts: What the page tells callers.
        base_model: Id of the base model.
        validated_use_cases: Uses that the run's gates vouch for.
    """
    return HandoffConfig(
        model_id=facts.name,
        base_model=base_model,
        quantization=facts.gguf_type,
        max_tokens=facts.max_tokens,
        temperature=facts.temperature,
        system_prompt=facts.system_prompt,
        supported_languages=facts.languages,
        domain=facts.domain,
        validated_use_cases=validated_use_cases,
    )


def render_api_page(facts: ApiFacts) -> str:
    """Write the inference page.

    Args:
        facts: What a caller needs to know.

    Returns:
        The text of ``inference-api.md``.
    """
    request = _request(facts)
    values = {
        "facts": facts,
        "stops": [json.dumps(stop, ensure_ascii=False) for stop in facts.stop_tokens],
        "file": shlex.quote(facts.gguf_name),
        "model": shlex.quote(facts.name),
        "ask": shlex.quote(facts.examples[0].prompt),
        "request": _json(request),
        "response": _json(_response(facts)),
        "server_body": shlex.quote(_json(request)),
        "ollama_body": shlex.quote(_json(_ollama_request(facts))),
        "python": _python(facts),
    }
    return render_page("inference-api", values)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2)


def _request(facts: ApiFacts) -> dict[str, Any]:
    return {
        "model": facts.name,
        "messages": facts.examples[0].request,
        "max_tokens": facts.max_tokens,
        "temperature": facts.temperature,
        "repeat_penalty": 1.0,
        **({"stop": list(facts.stop_tokens)} if facts.stop_tokens else {}),
    }


def _response(facts: ApiFacts) -> dict[str, Any]:
    """Show the parts of a response that callers read; ids and counts differ from call to call."""
    message = {"role": "assistant", "content": facts.examples[0].answer}
    return {"object": "chat.completion", "choices": [{"index": 0, "message": message}]}


def _ollama_request(facts: ApiFacts) -> dict[str, Any]:
    # Temperature, stops and context come from the Modelfile; num_predict has no place in this one.
    options = {"num_predict": facts.max_tokens}
    return {"model": facts.name, "messages": facts.examples[0].request, "stream": False, "options": options}


def _python(facts: ApiFacts) -> str:
    lines = [
        "from llama_cpp import Llama",
        "",
        f"model = Llama({facts.gguf_name!r}, n_ctx={facts.context_length}, verbose=False)",
        "response = model.create_chat_completion(",
        f"    messages={facts.examples[0].request!r},",
        f"    max_tokens={facts.max_tokens},",
        f"    temperature={facts.temperature!r},",
        "    repeat_penalty=1.0,",
        f"    stop={list(facts.stop_tokens)!r},",
        ")",
        'print(response["choices"][0]["message"]["content"])',
    ]
    return "\n".join(lines)
