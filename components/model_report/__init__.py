"""A run's results on one page."""
