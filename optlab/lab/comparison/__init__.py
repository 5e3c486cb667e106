"""Optimizers side by side, each over a grid of rates and seeds."""
