"""Pusher: deploys a model that both gates let through."""
