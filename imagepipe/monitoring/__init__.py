"""Monitoring: captured traffic against the data that the model was trained on, and what it said of the eval split."""
