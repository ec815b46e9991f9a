"""Why a row is unusable: a few stable phrases, so that they can be counted."""

UNKNOWN_SHAPE = "unknown shape"
UNKNOWN_ROLE = "unknown role"
NOT_TEXT = "content is not text"
NO_QUESTION = "no user turn"
NO_ANSWER = "no answer"
NO_TEXT = "empty text"
NO_MARKERS = "no chat markers"
OUTSIDE = "text between the turns"
BAD_CALL = "unreadable tool call"
BAD_TOOLS = "unreadable list of tools"
TOO_DEEP = "nested too deeply"
PREFERENCE = "preference pair: needs a preference trainer"
IMAGE = "holds an image"
AUDIO = "holds audio"
VIDEO = "holds a video"


class Rejected(Exception):
    """A row that cannot be used; the message is one of a few stable reasons."""


def stripped(value: object) -> str | None:
    """Return text without the space around it; a missing one stays None.

    Raises:
        Rejected: If it is something else than text.
    """
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return None
    raise Rejected(NOT_TEXT)


def answer(value: object) -> str:
    """Return the text of an answer.

    Raises:
        Rejected: If there is none, or it is not text.
    """
    text = stripped(value)
    if text is None:
        raise Rejected(NO_ANSWER)
    return text
