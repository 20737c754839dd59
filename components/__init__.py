"""TFX components of our own, and TFX's where they needed a change."""
