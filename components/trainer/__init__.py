"""Trainer and Tuner: TFX's, around the package trainer."""
