import ast
import json
import re
import shlex

import pytest
from pydantic import ValidationError

from core.deployment.api_page import (
    ApiFacts,
    ApiMessage,
    Example,
    HandoffConfig,
    build_handoff,
    render_api_page,
)

PROMPT = 'What\'s `2 + 2`? ```\nSay it "plainly" & in $ at < 5.'


def question(text, answer, expected=None, before=()):
    messages = (*before, ApiMessage(role="user", content=text))
    return Example(messages=messages, answer=answer, expected=expected)


def facts(**changes):
    values = {
        "name": "tutor",
        "gguf_name": "model-Q4_K_M.gguf",
        "gguf_type": "Q4_K_M",
        "context_length": 512,
        "max_tokens": 96,
        "temperature": 0.0,
        "stop_tokens": ("<|im_end|>", "\n"),
        "languages": ("en", "tw"),
        "domain": "arithmetic",
        "limits": ("Tested on 300 questions.",),
        "examples": (
            question(PROMPT, "It's 4.\n```"),
            question("Capital of Ghana?", "Kumasi", expected="Accra"),
            question(
                "And its sea?", "The Atlantic.", before=(ApiMessage(role="system", content="Be brief."),)
            ),
        ),
    }
    return ApiFacts(**(values | changes))


def blocks(page, language):
    """Read code blocks the way CommonMark does: a fence is closed by one at least as long."""
    found, fence, kept = [], None, []
    for line in page.splitlines():
        opening = re.match(r"(`{3,})(\w*)$", line)
        if fence is None and opening:
            fence, wanted, kept = opening[1], opening[2] == language, []
        elif fence and re.fullmatch(r"`+", line) and len(line) >= len(fence):
            if wanted:
                found.append("\n".join(kept))
            fence = None
        else:
            kept.append(line)
    assert fence is None
    return found


def commands(page, program):
    """Split every shell block as a shell would, and keep the commands that start with a program."""
    lines = [
        shlex.split(block, posix=True)
        for block in blocks(page, "sh")
        for block in block.split("\nollama run")
    ]
    return [words for words in lines if words[: len(program.split())] == program.split()]


def test_page_has_every_way_to_call_and_both_directions():
    page = render_api_page(facts())
    headings = re.findall(r"^## (.*)$", page, flags=re.MULTILINE)
    assert headings == [
        "Input",
        "Output",
        "Limits",
        "With the factory",
        "With the llama.cpp server",
        "With Ollama",
        "With Python",
        "Examples",
    ]
    assert "fit in 512 tokens" in page
    assert "- Tested on 300 questions." in page
    assert '`"<|im_end|>"`'.replace("|", "\\|") in page


def test_request_and_response_are_json_with_the_real_question_and_answer():
    request, response, _ = blocks(render_api_page(facts()), "json")
    assert json.loads(request) == {
        "model": "tutor",
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 96,
        "temperature": 0.0,
        "repeat_penalty": 1.0,
        "stop": ["<|im_end|>", "\n"],
    }
    assert json.loads(response)["choices"][0]["message"] == {"role": "assistant", "content": "It's 4.\n```"}


def test_shell_commands_survive_quotes_in_the_question():
    page = render_api_page(facts())
    assert commands(page, "factory chat") == [["factory", "chat", "WORKSPACE", "--prompt", PROMPT]]
    (server,) = commands(page, "llama-server")
    assert server[server.index("--model") + 1] == "model-Q4_K_M.gguf"
    assert server[server.index("--ctx-size") + 1] == "512"
    assert server[server.index("--host") + 1] == "127.0.0.1"
    to_server, to_ollama = (words for words in commands(page, "curl"))
    assert json.loads(to_server[-1]) == json.loads(blocks(page, "json")[0])
    assert json.loads(to_ollama[-1]) == {
        "model": "tutor",
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": False,
        "options": {"num_predict": 96},
    }
    assert ["ollama", "create", "tutor", "-f", "Modelfile"] in commands(page, "ollama create")


def test_python_example_is_python_with_the_same_settings():
    (code,) = blocks(render_api_page(facts(temperature=0.7)), "python")
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    settings = {kw.arg: ast.literal_eval(kw.value) for call in calls for kw in call.keywords}
    assert settings == {
        "n_ctx": 512,
        "verbose": False,
        "messages": [{"role": "user", "content": PROMPT}],
        "max_tokens": 96,
        "temperature": 0.7,
        "repeat_penalty": 1.0,
        "stop": ["<|im_end|>", "\n"],
    }


def test_examples_show_what_was_asked_answered_and_expected():
    page = render_api_page(facts())
    texts = blocks(page, "text")
    assert texts == [PROMPT, "It's 4.\n```", "Capital of Ghana?", "Kumasi", "Accra", "The Atlantic."]
    assert json.loads(blocks(page, "json")[-1]) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "And its sea?"},
    ]


def test_system_prompt_is_shown_and_not_passed_off_as_tested():
    page = render_api_page(facts(system_prompt="Be kind."))
    assert "Be kind." in blocks(page, "text")
    assert "asked without it" in " ".join(page.split())
    assert "Be kind." not in blocks(page, "json")[0]
    assert "asked without it" not in " ".join(render_api_page(facts()).split())


def test_a_form_for_pytorch_is_told_with_a_command_that_asks_it():
    form = {"path": "models/pytorch/int8", "measured": "The file has 3.5 MB."}
    page = render_api_page(facts(pytorch=(form,)))
    command = next(block for block in blocks(page, "sh") if block.startswith("python models/"))
    assert shlex.split(command) == ["python", "models/pytorch/int8/run.py", PROMPT]
    assert "The file has 3.5 MB." in page
    assert "PyTorch" not in render_api_page(facts())


def test_without_stops_none_are_named():
    page = render_api_page(facts(stop_tokens=()))
    assert "| `stop` | none |" in page
    assert "stop" not in json.loads(blocks(page, "json")[0])


def test_a_page_without_a_real_answer_is_refused():
    with pytest.raises(ValidationError, match="examples"):
        facts(examples=())


def test_handoff_has_the_owners_fields_and_agrees_with_the_page():
    handoff = build_handoff(
        facts(system_prompt="Be kind."), base_model="acme/tiny", validated_use_cases=("Sums.",)
    )
    assert json.loads(handoff.model_dump_json()) == {
        "model_id": "tutor",
        "model_type": "causal-lm",
        "base_model": "acme/tiny",
        "quantization": "Q4_K_M",
        "max_tokens": 96,
        "temperature": 0.0,
        "system_prompt": "Be kind.",
        "supported_languages": ["en", "tw"],
        "domain": "arithmetic",
        "validated_use_cases": ["Sums."],
    }


def test_handoff_is_for_causal_language_models_only():
    values = build_handoff(facts(), base_model="b", validated_use_cases=()).model_dump()
    with pytest.raises(ValidationError, match="model_type"):
        HandoffConfig(**(values | {"model_type": "encoder"}))
