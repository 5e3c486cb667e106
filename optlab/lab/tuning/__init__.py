"""The seven steps from a model to a tuned, explained run: `tune` and its report."""
