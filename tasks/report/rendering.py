"""The templates, and the functions they may call."""

import base64
import functools
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from core.data.sources.places import redacted
from tasks.report import charts, numbers
from tasks.report.answers import is_right

NUMBER_FILTERS = (
    *("percent", "points", "count", "compact", "size", "duration", "moment"),
    *("number", "short", "value", "sides", "comparison", "metric", "arm", "some", "capitalize_first"),
)
"""Functions of ``numbers`` that the templates may call."""


@functools.cache  # compiling the templates takes ten times as long as filling them
def environment() -> Environment:
    """Return the templates; every value they show is escaped, and a missing one is an error."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update({name: getattr(numbers, name) for name in NUMBER_FILTERS})
    made.filters.update(bars=charts.bars, composition=charts.composition, polyline=charts.points)
    made.filters.update(right=is_right, csp=_csp_source, web=_is_web_address, place=redacted)
    return made


def _csp_source(text: str) -> str:
    """Name an inline block in a content security policy by its digest."""
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


def _is_web_address(link: str) -> bool:
    # A javascript: address would run when clicked, however well it is escaped.
    return link.startswith(("http://", "https://"))
