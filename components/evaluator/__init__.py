"""Evaluator, the gate: metrics, confidence intervals, curves, paired tests against the live model, and rules."""
