"""A million updates of every rule, and the float64 numbers recorded for them."""
