"""A tiny random model of every supported family, with a tokenizer of the family's kind, made on the spot."""

from tests.families.models import FAMILIES, VARIANTS, build, perturb
from tests.families.vocabularies import tokenizer_for

__all__ = ["FAMILIES", "VARIANTS", "build", "perturb", "tokenizer_for"]
