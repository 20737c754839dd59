"""Predictions: the answers of candidate and champion to each image."""
