"""Metrics, figures of the process, and logs."""
