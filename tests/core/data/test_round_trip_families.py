"""What a family's tokenizer does to white space is no loss; what it spells out survives."""

import pytest

from core.data.chat import ChatTokenizer
from core.data.records import Conversation, Message
from core.data.round_trip import EncodedRow, check_round_trip
from tests.families import FAMILIES, VARIANTS, tokenizer_for
from tests.families.texts import TRICKY


@pytest.mark.parametrize("family", FAMILIES + VARIANTS)
def test_no_family_loses_anything_of_awkward_rows(family):
    tokenizer = tokenizer_for(family)
    chat = ChatTokenizer(tokenizer, tokenizer.chat_template)
    spelled = " ".join(["a", *sorted(chat.control_tokens), "b"])
    rows = []
    for number, text in enumerate([*TRICKY, spelled, "<think>\nhm\n</think>\n\nyes"]):
        turns = [Message(role="user", content=text), Message(role="assistant", content=text)]
        talk = Conversation(id=str(number), messages=tuple(turns * 2))
        rows.append(EncodedRow(talk, chat.encode(talk)))
    result = check_round_trip(rows, chat)
    assert result.failures == 0, result.first
