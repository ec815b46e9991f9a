"""The Markdown pages of a bundle: Jinja files, and the one function that fills them in."""

import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def render_page(name: str, values: Mapping[str, object]) -> str:
    """Fill in a page of this folder.

    A value the page asks for and does not get is an error: a documented model must not have
    blanks where facts belong.

    Args:
        name: File name without ``.md.jinja``.
        values: What the page names.

    Returns:
        Markdown that ends in one newline.

    Raises:
        jinja2.UndefinedError: If a value is missing.
    """
    # No HTML escaping: these pages are Markdown, and the code in them is copied by hand.
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters.update(cell=_cell, fenced=_fenced)
    text = pages.get_template(f"{name}.md.jinja").render(values)
    return text.rstrip() + "\n"


def _cell(value: object) -> str:
    """Keep a text inside its table cell or list item: one line, no bare column separator."""
    return " ".join(str(value).split()).replace("|", "\\|")


def _fenced(text: str, language: str = "") -> str:
    """Wrap a text in a code block that no run of backticks inside it can close."""
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"
