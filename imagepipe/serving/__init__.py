"""Asking models: in this process, over HTTP, in batches and before a push. Nothing here knows TFX."""
