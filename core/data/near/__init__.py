"""Texts that say almost the same: found by MinHash, confirmed by counting.

shingles.py    texts -> sets of three-word sequences, as hashes
bands.py       sets -> MinHash band keys: similar sets share some (rensa's signatures)
candidates.py  rows that share a band key
similar.py     the whole search: candidates confirmed by their true Jaccard similarity
"""

from core.data.near.shingles import Texts
from core.data.near.similar import Similar, TextJob, doubles, find_similar

__all__ = ["Similar", "TextJob", "Texts", "doubles", "find_similar"]
