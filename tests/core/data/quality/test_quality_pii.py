import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data.config import PiiConfig, QualityConfig
from core.data.quality import check_patterns, prepare, redact
from core.errors import ConfigError

PREPARED = prepare(QualityConfig(pii=PiiConfig(national_ids={"pupil": r"PUP\d{5}"})))

FOUND = {
    "mail ama.mensah+1@knust.edu.gh now": "mail [EMAIL] now",
    "邮箱是foo@bar.com。": "邮箱是[EMAIL]。",
    "müller@straße.de": "[EMAIL]",
    "Call +233 24 412 3456 today": "Call [PHONE] today",
    "+233244123456, +44 (0)20 7946 0958": "[PHONE], [PHONE]",
    "(415) 555-2671 or 415-555-2671": "[PHONE] or [PHONE]",
    "mobile 024 412 3456 2024": "mobile [PHONE] 2024",
    "Me nɔma ne 024 412 3456.": "Me nɔma ne [PHONE].",
    "0803 123 4567; 06 12 34 56 78; 07700 900123": "[PHONE]; [PHONE]; [PHONE]",
    "ring 0244123456": "ring [PHONE]",
    "phone: 555 123 4567": "phone: [PHONE]",
    "(11) 98765-4321": "[PHONE]",
    "0044 20 7946 0958": "[PHONE]",
    "pay 4111 1111 1111 1111 12/27": "pay [CARD] 12/27",
    "cvv 123 4111-1111-1111-1111": "cvv 123 [CARD]",
    "378282246310005": "[CARD]",
    "to GB29 NWBK 6016 1331 9268 19 AND MORE": "to [IBAN] AND MORE",
    "DE89370400440532013000": "[IBAN]",
    "ssn 536-22-1234": "ssn [ID:us_ssn]",
    "nino AB123456C or AB 12 34 56 C": "nino [ID:uk_nino] or [ID:uk_nino]",
    "card GHA-123456789-0": "card [ID:ghana_card]",
    "529.982.247-25": "[ID:brazil_cpf]",
    "CPF 52998224725": "CPF [ID:brazil_cpf]",
    "my NIN is 12345678901": "my NIN is [ID:nigeria_nin]",
    "id PUP12345": "id [ID:pupil]",
    "AKIAIOSFODNN7EXAMPLE": "[API_KEY]",
    "ghp_" + "a1B2" * 9: "[API_KEY]",
    "xoxb-123456789012-abcdef": "[API_KEY]",
    "AIza" + "Sy1-" * 8 + "abc": "[API_KEY]",
    "key sk-proj-abc123DEF456ghi789jkl": "key [API_KEY]",
    "sk-ant-api03-a1b2c3d4e5f6g7h8i9j0": "[API_KEY]",
    "sk_live_4eC39HqLyjWDarjtT1zdp7dc": "[API_KEY]",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl": "[API_KEY]",
    "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYzz1234": "aws_secret_access_key = [API_KEY]",
    "password=hunter2x!": "password=[PASSWORD]",
    '"passwd": "S3cr3t-9"': '"passwd": "[PASSWORD]"',
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA75\nabc=\n-----END RSA PRIVATE KEY-----\nend": "[PRIVATE_KEY]\nend",
    "-----BEGIN PRIVATE KEY-----\nMIIEpAIBAAKCAQEA75hunk\nThen other text.": "[PRIVATE_KEY]Then other text.",
}

PASSED_OVER = [
    "The price is 1,234,567,890 cedis in 2024 and 2025.",
    "3.14159265358979 and 1.4142135623 and +1.4142135623",
    "5 + 1234567890 = 1234567895",
    "12 34 56 78 90 11 22 33 44 55",
    "01 02 03 04 05 06",
    "Write 0110100101 in decimal; 0123456789 are the digits.",
    "ISBN 978-0-306-40615-7 and ISBN 0-306-40615-2, ISBN 0306406152",
    "x = 1000000007, 2147483647, 18446744073709551615",
    "4111 1111 1111 1112",
    "0.0244123456",
    "12.02441234567",
    "on 03.04.2021 12:30 and 2021-04-03",
    "123456789012 is no id; 2019 2020 2021 are years",
    "536-00-1234 and 666-22-1234 and 912-22-1234",
    "GB29 NWBK 6016 1331 9268 18",
    "git@github.com:someone/something.git and A@B.T and @pytest.mark.slow",
    "password: required, password=your_password, password = ${PASSWORD}, token: [API_KEY]",
    "sk-learn-is-a-good-library-for-you",
    "eyJub3QganNvbg.eyJub3QganNvbg.abc",
    "UUID 550e8400-e29b-41d4-a716-446655440000",
    "$0244123456 and 0244123456% and 0244123456th",
]


@pytest.mark.parametrize("text", FOUND)
def test_findings_are_replaced_by_their_kind(text):
    assert redact([text], PREPARED) == [FOUND[text]]


@pytest.mark.parametrize("text", PASSED_OVER)
def test_plain_numbers_and_formulas_are_left_alone(text):
    assert redact([text], PREPARED) == [text]


def test_aadhaar_needs_its_check_digit():
    assert redact(["2341 2341 2346"], PREPARED) == ["[ID:india_aadhaar]"]
    assert redact(["2341 2341 2347"], PREPARED) == ["2341 2341 2347"]


PIECES = st.sampled_from(
    [*FOUND, *PASSED_OVER, *FOUND.values(), "[", "]", " ", "\n", "0", "a", "-", "@x.com", "=", "\ue000"]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(PIECES, max_size=6).map("".join), max_size=5))
def test_redacting_twice_changes_nothing_more(texts):
    once = redact(texts, PREPARED)
    assert redact(once, PREPARED) == once


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from([*FOUND, *PASSED_OVER]), max_size=8))
def test_many_texts_at_once_are_redacted_as_one_by_one(texts):
    assert redact(texts, PREPARED) == [redact([text], PREPARED)[0] for text in texts]


@pytest.mark.parametrize(
    "sign",
    [
        "@",
        "1",
        "a",
        "1 ",
        "0 12 ",
        "a@",
        "a@b.",
        "+1",
        "(",
        "[",
        "-----BEGIN PRIVATE KEY-----",
        "password=",
        "AB12 ",
        "eyJ",
        "4111 ",
        "x:",
    ],
)
def test_a_row_of_two_million_characters_takes_no_minutes(sign):
    text = (sign * 2_000_000)[:2_000_000]
    start = time.process_time()
    redact([text], PREPARED)
    # About half a second on an idle machine; what looks back at every character would take hours.
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("name", "pattern", "said"),
    [("bad", "(", "RE2"), ("look", r"(?<=a)b", "RE2"), ("empty", "a*", "empty text"), ("a b", "x", "[ID:")],
)
def test_an_unusable_pattern_is_refused_by_the_name_of_its_key(name, pattern, said):
    config = QualityConfig(pii=PiiConfig(national_ids={name: pattern}))
    with pytest.raises(ConfigError) as caught:
        check_patterns(config)
    assert f"quality.pii.national_ids.{name}" in str(caught.value) and said in str(caught.value)


def test_a_pattern_of_the_settings_replaces_the_built_in_of_that_name():
    own = prepare(QualityConfig(pii=PiiConfig(national_ids={"ghana_card": r"GHA\d{3}"})))
    assert redact(["GHA123 GHA-123456789-0"], own) == ["[ID:ghana_card] GHA-123456789-0"]


def test_a_greedy_pattern_leaves_tags_alone():
    own = prepare(QualityConfig(pii=PiiConfig(national_ids={"letters": r"[A-Z]{3,}"})))
    once = redact(["ABC a@b.com"], own)
    assert once == ["[ID:letters] [EMAIL]"] and redact(once, own) == once


def test_what_workers_need_can_be_sent_to_them():
    there = pickle.loads(pickle.dumps(PREPARED))
    assert redact(list(FOUND), there) == list(FOUND.values())
