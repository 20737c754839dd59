"""DataGate: stops the run on errors in the data."""
