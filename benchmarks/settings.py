"""The hyperparameters of all contenders in all cases."""

LEARNING_RATE = 1e-3
MOMENTUM = 0.9
WEIGHT_DECAY = 0.01
MAX_NORM = 1.0
AVERAGE_DECAY = 0.999

B1 = 0.9
B2 = 0.999
ADAM_EPS = 1e-8

RMSPROP_DECAY = 0.99
RMSPROP_EPS = 1e-24
"""ε inside the root; PyTorch has 1e-12 outside. With an ε this small its place does not matter."""

ADAGRAD_START = 0.1
ADAGRAD_EPS = 1e-10
"""ε inside or outside the root; beside ADAGRAD_START float32 does not show the difference."""
