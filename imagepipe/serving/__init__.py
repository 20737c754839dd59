"""Asking models: where they are, what is asked, what they answer. Nothing in here knows TFX."""
