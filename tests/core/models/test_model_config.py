"""How a base is held: in four bits unless something else is asked for."""

import pytest
from pydantic import ValidationError

from core.models.config import ModelConfig

YES = [True, "true", 1, "yes"]


@pytest.mark.parametrize("eight", YES)
def test_eight_bits_take_the_place_of_the_four_bit_default(eight: object) -> None:
    held = ModelConfig.model_validate({"name": "m", "load_in_8bit": eight})
    assert (held.load_in_8bit, held.load_in_4bit) == (True, False)
    assert ModelConfig.model_validate(held.model_dump()) == held


@pytest.mark.parametrize("eight", YES)
@pytest.mark.parametrize("four", YES)
def test_both_sizes_are_refused_however_they_are_spelled(four: object, eight: object) -> None:
    with pytest.raises(ValidationError, match="load_in_4bit and load_in_8bit are both true"):
        ModelConfig.model_validate({"name": "m", "load_in_4bit": four, "load_in_8bit": eight})


@pytest.mark.parametrize(
    ("given", "four"), [({}, True), ({"load_in_4bit": False}, False), ({"load_in_8bit": False}, True)]
)
def test_four_bits_are_the_default_and_can_be_turned_off(given: dict, four: bool) -> None:
    held = ModelConfig.model_validate({"name": "m", **given})
    assert (held.load_in_8bit, held.load_in_4bit) == (False, four)
