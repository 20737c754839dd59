"""A script for each claim: a table, or one line of JSON with --json."""
