"""Every fact of the tutor that is no calculation."""

from data.tutor.geography import GEOGRAPHY
from data.tutor.relation import Fact, Relation, facts_of
from data.tutor.science import SCIENCE
from data.tutor.twi import TWI

RELATIONS: tuple[Relation, ...] = (*SCIENCE, *GEOGRAPHY, *TWI)
FACTS: tuple[Fact, ...] = tuple(fact for relation in RELATIONS for fact in facts_of(relation))
