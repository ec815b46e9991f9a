"""Templates render as transformers renders them."""

from typing import Any

import pytest
from jinja2 import TemplateError

from core.deployment.llama.template import render, without_generation_tags
from tests.core.deployment.gguf import tiny

MESSAGES = [
    {"role": "system", "content": "Short answers."},
    {"role": "user", "content": "Sɛ wo wɔ GH₵17?  "},
    {"role": "assistant", "content": "GH₵12"},
    {"role": "user", "content": "a\n\nb <|end|>"},
]
TEMPLATES = {
    "tight": tiny.CHAT,
    "lines": """{{- bos_token }}
{%- for m in messages %}
    {% if m.role == 'assistant' %}
  {% generation %}
{{ m.content | trim }}{{ eos_token }}
  {% endgeneration %}
    {%- else %}
<|{{ m.role }}|>{{ m.content | tojson }}
    {% endif %}
    {%- if loop.first %}{% continue %}{% endif %}
{% endfor %}
{% if add_generation_prompt %}<|assistant|>
{% endif %}""",
    "dashes": (
        "{% for m in messages %} {%- generation -%} {{ m.content }} {%- endgeneration -%} {% endfor %}"
        "{{ unk_token }}"
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_like_transformers(name: str) -> None:
    tokenizer: Any = tiny.byte_level()
    wanted = tokenizer.apply_chat_template(
        MESSAGES, chat_template=TEMPLATES[name], add_generation_prompt=True, tokenize=False
    )
    tokens = {"bos_token": "<|bos|>", "eos_token": "<|end|>", "pad_token": "<|pad|>"}
    assert render(TEMPLATES[name], MESSAGES, tokens) == wanted
    cleaned = without_generation_tags(TEMPLATES[name])
    assert "generation" not in cleaned.replace("add_generation_prompt", "")
    assert render(cleaned, MESSAGES, tokens) == wanted


def test_a_template_can_refuse_and_cannot_reach_python() -> None:
    with pytest.raises(TemplateError, match="no system"):
        render("{{ raise_exception('no system turns') }}", MESSAGES, {})
    with pytest.raises(TemplateError):
        render("{{ messages.__class__.__mro__ }}", MESSAGES, {})
