"""Champion: the live model, as the baseline of the gate."""
