"""Captured traffic: what a model was asked in service and what it answered, as Parquet by hour and version."""
