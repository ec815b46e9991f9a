"""The split phase: which rows are learnt from, which steer, and which only judge.

rows.py        what the rows are divided by: keys, groups, strata, times
relatives.py   rows that must stay on one side
strategies.py  who goes where
writing.py     the three files
divide.py      the phase
"""

from core.data.split.divide import split

__all__ = ["split"]
