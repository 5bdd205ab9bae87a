"""Runs from the checkout: configuration, data, networks, and the stages that use prune_env."""
