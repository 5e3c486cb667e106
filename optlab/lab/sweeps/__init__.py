"""The search for hyperparameters: ranges, searches, trials, their runner and their results."""
