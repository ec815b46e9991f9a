"""The fused engine: decoder layers as single differentiable functions, and what they keep in memory."""
