"""The schema of image Examples."""
