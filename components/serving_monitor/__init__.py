"""ServingMonitor: captured traffic against the live model's reference."""
