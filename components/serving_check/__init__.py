"""ServingCheck: the second gate. A real server gives the graph's answers, fast enough."""
