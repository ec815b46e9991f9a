"""The school tutor: the facts, and the question rows made of them."""
