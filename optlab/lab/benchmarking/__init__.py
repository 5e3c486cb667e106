"""`bench`: optimizers with equal tuning budgets on a set of tasks, and what the data can tell."""
