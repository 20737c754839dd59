"""What is live now, as the baseline of the gate."""
