"""Deploys a model that both gates let through."""
