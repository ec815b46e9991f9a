"""Keys, tokens and passwords."""

import base64
import binascii
import json
import math
import re
from collections import Counter
from typing import Final

from core.data.quality.detectors import Detector, Spans

_TOKENS: Final = (
    r"(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z2-7]{16}",  # AWS
    r"gh[pousr]_[A-Za-z0-9]{36,}",  # GitHub
    r"github_pat_[A-Za-z0-9_]{22,}",
    r"glpat-[A-Za-z0-9_-]{20,}",  # GitLab
    r"xox[abeoprs]-[A-Za-z0-9-]{10,}",  # Slack
    r"AIza[A-Za-z0-9_-]{35}",  # Google
    r"ya29\.[A-Za-z0-9_-]{20,}",
    r"sk-[A-Za-z0-9_-]{20,}",  # OpenAI, Anthropic and those who copied them
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,}",  # Stripe
    r"whsec_[A-Za-z0-9]{24,}",
    r"hf_[A-Za-z0-9]{30,}",  # Hugging Face
    r"npm_[A-Za-z0-9]{36}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",  # SendGrid
    r"eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*",  # JSON Web Token
)
_WEBHOOK = r"hooks\.slack\.com/services/T[A-Za-z0-9_]+/B[A-Za-z0-9_]+/[A-Za-z0-9_]+"
_KEY_HEADER = r"-----BEGIN [A-Z0-9 ]{0,24}PRIVATE KEY(?: BLOCK)?-----"
_KEY_FOOTER = r"-----END [A-Z0-9 ]{0,24}PRIVATE KEY(?: BLOCK)?-----"
_KEY_BODY = r"(?:[A-Za-z0-9+/=\s:,.()\\]|-[A-Za-z0-9])*"
_KEY_LINE = re.compile(r"(?:\\n|\s|[A-Za-z0-9+/=]{16,}|[A-Za-z0-9+/]+={1,2}|[A-Z][A-Za-z-]+: [^\n]*)*")

_PASSWORD_NAMES = r"password|passwd|passphrase|passcode|passwort|pwd|contraseña|senha|mot de passe"
_KEY_NAMES = r"api[_ -]?key|apikey|secret|token|private[_-]?key|access[_-]?key|credentials?"
_ASSIGNED = r"[\"']?\s{0,4}(?::=|=>|[:=])\s{0,4}[\"'`]?"
_VALUE = r"[^\s\"'`<>,;]{6,}"
_PLACEHOLDER = re.compile(
    r"(?i)\A(?:[\[{$(%]|your|change|example|placeholder|redacted|dummy|none\b|null\b|true\b|false\b)"
    r"|\*\*\*|xxx|\.\.\."
)
_TELLING_SIGN = re.compile(r"[^\w\-./:()'’]|\d")
_KEY_ENTROPY = 3.0
_PASSWORD_ENTROPY = 2.0
_LONGEST_VALUE = 4096


def credential_detectors() -> tuple[Detector, ...]:
    """Return the detectors, surest first."""
    tokens = "|".join(_TOKENS)
    return (
        Detector("private_key", "[PRIVATE_KEY]", f"{_KEY_HEADER}{_KEY_BODY}(?:{_KEY_FOOTER})?", _private_key),
        Detector("api_key", "[API_KEY]", rf"\b(?:{tokens}|{_WEBHOOK})", _token),
        Detector("api_key", "[API_KEY]", _assignment(_KEY_NAMES), _assigned_key),
        Detector("password", "[PASSWORD]", _assignment(_PASSWORD_NAMES), _assigned_password),
    )


def entropy(text: str) -> float:
    """Return the Shannon entropy of a text's characters, in bits per character."""
    return -sum(n / len(text) * math.log2(n / len(text)) for n in Counter(text).values())


def _assignment(names: str) -> str:
    return rf"(?i)(?:{names})[\w-]{{0,24}}{_ASSIGNED}{_VALUE}"


def _private_key(text: str, start: int, end: int) -> Spans:
    if text.endswith("-----", start, end) and "-----END" in text[max(start, end - 64) : end]:
        return ((start, end),)
    # Without its end, what looks like lines of a key belongs to it; what follows is other text.
    header = text.index("-----", start + 5) + 5
    body = _KEY_LINE.match(text, header, end)
    return ((start, body.end() if body else header),)


def _token(text: str, start: int, end: int) -> Spans:
    shown = text[start:end]
    if shown.startswith("sk-") and not _looks_random(shown[3:]):
        return ()
    if shown.startswith("eyJ") and not _is_token_header(shown.partition(".")[0]):
        return ()
    return ((start, end),)


def _is_token_header(part: str) -> bool:
    try:
        header = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        return False
    return isinstance(header, dict) and "alg" in header


def _assigned_key(text: str, start: int, end: int) -> Spans:
    found = _value(text, start, end, least=16, needed=_KEY_ENTROPY)
    return found if found and _looks_random(text[slice(*found[0])]) else ()


def _assigned_password(text: str, start: int, end: int) -> Spans:
    return _value(text, start, end, least=6, needed=_PASSWORD_ENTROPY)


def _value(text: str, start: int, end: int, *, least: int, needed: float) -> Spans:
    """Return where an assigned value stands, if it looks like a secret."""
    name = re.match(r"[^:=]*(?::=|=>|[:=])\s*[\"'`]?", text[start:end])
    if name is None:
        return ()
    begin = start + name.end()
    value = text[begin:end].rstrip(".)]}")
    judged = value[:_LONGEST_VALUE]
    if len(value) < least or _PLACEHOLDER.search(judged) or not _TELLING_SIGN.search(judged):
        return ()
    return ((begin, begin + len(value)),) if entropy(judged) >= needed else ()


def _looks_random(text: str) -> bool:
    """Return whether a key has letters, digits, and hardly a pattern."""
    judged = text[:_LONGEST_VALUE]
    return (
        bool(re.search(r"\d", judged) and re.search(r"[A-Za-z]", judged)) and entropy(judged) >= _KEY_ENTROPY
    )
