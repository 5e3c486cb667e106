"""Stochastic gradient descent, plain or with momentum.

    u = −lr · g                                  plain
    u = −lr · v                                  with the velocity v of `scale_by_momentum`

lr is `learning_rate`. A typical rate with momentum 0.9 is a tenth of the rate without.

Reference: Robbins & Monro, Ann. Math. Stat. 22 (1951); for momentum see `scale_by_momentum`.
"""

from __future__ import annotations

from optlab.optimizers._momentum import momentum_rules
from optlab.rules import optimizer

sgd = optimizer("sgd", momentum_rules, summary="Descend along the gradient, or along its velocity.")
