"""TFX's Trainer and Tuner around the package trainer."""
