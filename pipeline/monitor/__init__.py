"""Captured traffic against a run: figures, and a page."""
