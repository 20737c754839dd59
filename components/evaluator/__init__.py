"""The gate: TFMA's metrics, their intervals and paired tests against what is live."""
