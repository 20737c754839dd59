"""Pusher: deploys a model that both gates have passed."""
