"""Runs that have been: their summaries, what they were made from, and pages about them."""
