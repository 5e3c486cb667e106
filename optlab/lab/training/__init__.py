"""How runs are trained and evaluated."""
