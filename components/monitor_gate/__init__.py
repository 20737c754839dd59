"""MonitorGate: fails the run if the traffic has moved."""
