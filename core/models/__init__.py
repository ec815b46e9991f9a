"""Loading base models, adapters, and models built from scratch."""
