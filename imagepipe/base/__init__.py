"""What everything stands on: images, records, file systems, names, errors, progress. Imports nothing heavy."""
