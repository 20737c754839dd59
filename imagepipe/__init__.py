"""From labelled images to a gated, served classifier."""
