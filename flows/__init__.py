"""Prefect flows and the `jacobian` command: thin, passing ids, paths and counts, never arrays."""
