"""Operators with a plain definition and a fused twin."""
