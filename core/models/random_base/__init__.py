"""Base models of published sizes with random weights, for measuring and for tests on machines without a network."""
