"""Labelling: images that a person should look at, a page to decide on them, and the file of decisions."""
