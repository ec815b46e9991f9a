"""MAY WE. Pure functions from typed reports and thresholds to a verdict."""
