"""The page a person reads after a run: one HTML file that needs nothing else."""
