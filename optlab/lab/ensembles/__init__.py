"""Many weights of one model: ensembles, snapshots, soups, and statistics for averages."""
