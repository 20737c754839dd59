"""The second gate: a real server gives the graph's answers, fast enough."""
