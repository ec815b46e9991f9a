"""Records, sources, formats, duplicates, splits, chat templates and batches."""
