"""HOW: the engines. No Prefect, no MLflow, no environment variables, no global state."""
