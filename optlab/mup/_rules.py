"""The rule tables: what rate, decay, ε and the first numbers of a parameter are multiplied by.

i is how many times as large the input of a parameter is as in the base model, o its output; for a
vector o is its size. L is how many times as many layers there are, α the power of 1/L by which the
model multiplies its residual branches.

    rate             input    hidden    output    vector
    SGD              o        o / i     i         o
    Adam, Lion       1        1 / i     1         1
    ε of Adam        1 / o    1 / o     1 / i     1 / o
    first numbers    1        1 / √i    1         1

A matrix whose updates have a spectral norm s(in, out) that the rule sets, as Muon's, has the rate
√(o / i) · s(base) / s, and i times that if it is the output. What is fixed has 1 everywhere.

The table is for the coding "multiplier", in which the model multiplies its logits by 1/i. In the
coding "plain" the head W has the place of the product W/i: so its first numbers are divided by i,
its rate by i (SGD: i²), and its ε multiplied by i. Both train the same function.

In residual blocks the rate is multiplied by L^(α−1), of SGD by L^(2α−1), and ε by L^(−α).

The decay is given as what a parameter shrinks by in one update, over what it shrinks by in the base
model. The optimizer multiplies its decay by the rate, so that λ is multiplied by shrink / rate.

    mup              1
    nanogpt_mup      the rate's multiplier in the coding "multiplier": λ stays
    completep        L^(α−1) in blocks, 1 elsewhere; 0 for what is no linear map
    unit_scaling     1 / peak rate: it does not depend on the rate that was tuned

Reference: Yang, Hu, Babuschkin et al., "Tensor programs V", arXiv 2203.03466 (2022), tables 3 and
8; Yang, Simon, Bernstein, "A spectral condition for feature learning", arXiv 2310.17813 (2023);
Yang, Yu, Zhu, Hayou, "Tensor programs VI", arXiv 2310.02244 (2023); Dey, Zhang, Noci et al.,
"Don't be lazy: CompleteP", arXiv 2505.01618 (2025); Blake et al., "u-μP", arXiv 2407.17465 (2024).
"""

import math
from collections.abc import Callable, Mapping
from typing import Literal

from optlab._types import ArrayLike
from optlab.mup._growth import Growth, Kind

Rule = Literal["sgd", "adam", "lion", "spectral"]
Decay = Literal["mup", "nanogpt_mup", "completep", "unit_scaling"]
Coding = Literal["multiplier", "plain"]

DECAYS: tuple[Decay, ...] = ("mup", "nanogpt_mup", "completep", "unit_scaling")
CODINGS: tuple[Coding, ...] = ("multiplier", "plain")

Factor = Callable[[float, float], float]
"""(i, o) → a multiplier."""

_OF_SIGNS: Mapping[Kind, Factor] = {
    "input": lambda i, o: 1.0,
    "hidden": lambda i, o: 1.0 / i,
    "output": lambda i, o: 1.0,
    "vector": lambda i, o: 1.0,
    "fixed": lambda i, o: 1.0,
}
_RATES: Mapping[str, Mapping[Kind, Factor]] = {
    "sgd": {
        "input": lambda i, o: o,
        "hidden": lambda i, o: o / i,
        "output": lambda i, o: i,
        "vector": lambda i, o: o,
        "fixed": lambda i, o: 1.0,
    },
    "adam": _OF_SIGNS,
    "lion": _OF_SIGNS,
}


def rate_of(
    rule: Rule,
    growth: Growth,
    coding: Coding,
    depth: float,
    alpha: float,
    norm: Callable[[int, int], float] | None,
) -> float:
    """Return what the rate of a parameter is multiplied by.

    Args:
        rule: how large the rule's updates are.
        growth: how the parameter has grown.
        coding: where the 1/i of the output stands.
        depth: L for a parameter of a residual block, 1 for others.
        alpha: α.
        norm: s, for a rule that sets the spectral norm.
    """
    if rule == "spectral" and norm is not None:
        rate = _spectral(growth, norm)
    else:
        rate = _RATES[rule][growth.kind](growth.fan_in, growth.fan_out)
    if coding == "plain" and growth.kind == "output":
        rate /= growth.fan_in ** (2 if rule == "sgd" else 1)
    return rate * depth ** (2 * alpha - 1 if rule == "sgd" else alpha - 1)


def _spectral(growth: Growth, norm: Callable[[int, int], float]) -> float:
    axes, shape = growth.leaf.axes, growth.leaf.shape
    size_in = math.prod(shape[axis] for axis in axes.input)
    size_out = axes.split[0] if axes.split else math.prod(shape[axis] for axis in axes.output)
    base_in, base_out = size_in / growth.fan_in, size_out / growth.fan_out
    own = norm(size_in, size_out) / norm(max(1, round(base_in)), max(1, round(base_out)))
    rate = math.sqrt(growth.fan_out / growth.fan_in) / own
    return rate * growth.fan_in if growth.kind == "output" else rate


def eps_of(growth: Growth, coding: Coding, depth: float, alpha: float) -> float:
    """Return what ε of Adam is multiplied by, as the gradients of a parameter are."""
    if growth.kind == "output":
        return 1.0 if coding == "plain" else 1.0 / growth.fan_in
    return depth**-alpha / growth.fan_out


def init_of(growth: Growth, coding: Coding) -> float:
    """Return what the first numbers of a parameter are multiplied by, against the base model's."""
    if growth.kind == "hidden":
        return growth.fan_in**-0.5
    return 1.0 / growth.fan_in if growth.kind == "output" and coding == "plain" else 1.0


def decay_of(
    decay: Decay | None,
    growth: Growth,
    in_multiplier: float,
    rate: float,
    depth: float,
    alpha: float,
    peak: ArrayLike | None,
) -> ArrayLike:
    """Return what λ is multiplied by.

    Args:
        decay: the treatment of decay; None where there is none to treat.
        growth: how the parameter has grown.
        in_multiplier: what the rate is multiplied by in the coding "multiplier".
        rate: what it is multiplied by in the coding that is used.
        depth: L for a parameter of a residual block, 1 for others.
        alpha: α.
        peak: the highest learning rate, for "unit_scaling".
    """
    if decay is None:
        return 1.0
    if decay == "unit_scaling" and peak is not None:
        return 1.0 / (peak * rate)
    if decay == "completep":
        shrink = depth ** (alpha - 1) if growth.leaf.is_linear else 0.0
    else:
        shrink = 1.0 if decay == "mup" else in_multiplier
    return shrink / rate
