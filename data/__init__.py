"""Sample corpora of the project's own making."""
