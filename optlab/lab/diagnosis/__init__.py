"""What a run's curves show, and whether a model is fit to train."""
