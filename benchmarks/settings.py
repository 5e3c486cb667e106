"""The hyperparameters that every contender of every case has."""

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
"""Inside the root; PyTorch has 1e-12 outside. Only so small is the place without consequence."""

ADAGRAD_START = 0.1
ADAGRAD_EPS = 1e-10
"""Inside the root or outside: beside the start neither can be seen in float32."""
