"""Generation, graders, metrics and statistics."""
