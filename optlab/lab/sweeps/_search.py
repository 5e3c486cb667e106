"""The values of a sweep's trials: random, quasi-random (Halton), or on a grid.

A trial's values depend only on the seed and on the trial's number. A sweep can therefore be
stopped, continued, extended or shared among processes without changing any trial.

Reference: Bergstra, Bengio, "Random Search for Hyper-Parameter Optimization", JMLR 13 (2012), on
random search and grids; Owen, "A randomized Halton algorithm in R", arXiv:1706.02808 (2017), on the
scrambling.
"""

import difflib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optlab import _checks
from optlab._extras import needs_extra
from optlab.lab.sweeps._space import Categorical, Range, Scalar

SEARCHES = ("random", "halton", "grid", "bayes")


def check_search(who: str, search: Any, seed: Any) -> None:
    """Require the name of a search, and a valid seed.

    Raises:
        ValueError: there is no such search, or the seed is not an integer ≥ 0.
    """
    if search not in SEARCHES:
        close = difflib.get_close_matches(str(search).lower(), SEARCHES)
        remedy = f"did you mean {close[0]!r}?" if close else ""
        _checks.fail(who, f"search must be one of {SEARCHES}", f"search={search!r}", remedy)
    _checks.check_integer(who, "seed", seed, 0)


def points(
    space: Mapping[str, Range], search: str, seed: int, numbers: Sequence[int]
) -> list[dict[str, Scalar]]:
    """Return the values of trials, by their numbers.

    A range that is added at the end of the space does not change the values of the other ranges.

    Args:
        space: name → range.
        search: "random", in which trials are independent; or "halton", in which they fill the
            space, and each range in particular, more evenly.
        seed: ≥ 0; another seed gives other values.
        numbers: the numbers of the trials, each ≥ 0.

    Example:
        >>> from optlab.lab.sweeps._space import LogUniform
        >>> space = {"learning_rate": LogUniform(1e-4, 1e-1)}
        >>> points(space, "random", 0, [7]) == points(space, "random", 0, range(8))[7:]
        True
    """
    positions = {"random": _random, "halton": _halton}[search](len(space), seed, numbers)
    return [
        {name: entry.at(u) for (name, entry), u in zip(space.items(), row, strict=True)}
        for row in positions.tolist()
    ]


def grid(who: str, space: Mapping[str, Range], trials: int) -> list[dict[str, Scalar]]:
    """Return a grid of at most `trials` points: evenly spaced levels of numbers, all choices.

    Ranges of numbers get equally many levels, as far as `trials` allows; a remaining level goes to
    the range that is named first. A single level is the middle of its range; several levels include
    both ends.

    Args:
        who: the public name that errors begin with.
        space: name → range.
        trials: ≥ 1.

    Raises:
        ValueError: the choices alone make more than `trials` points.

    Example:
        >>> from optlab.lab.sweeps._space import LogUniform, Categorical
        >>> space = {"rate": LogUniform(0.01, 1.0), "nesterov": Categorical((False, True))}
        >>> [point["rate"] for point in grid("sweep", space, 7) if point["nesterov"]]
        [0.01, 0.1, 1.0]
    """
    counts = {name: int(r.size) if isinstance(r, Categorical) else 1 for name, r in space.items()}
    if (choices := math.prod(counts.values())) > trials:
        required = f"trials must be at least {choices}, one for each combination of choices"
        _checks.fail(who, required, f"trials={trials}", 'raise trials, or use search="halton"')
    while (name := _next_to_grow(space, counts, trials)) is not None:
        counts[name] += 1
    levels = [entry.levels(counts[name]) for name, entry in space.items()]
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*levels)]


def _next_to_grow(space: Mapping[str, Range], counts: Mapping[str, int], trials: int) -> str | None:
    """Return the range with the fewest levels among those that can get one more."""
    total = math.prod(counts.values())
    fits = [
        name
        for name, entry in space.items()
        if counts[name] < entry.size and total // counts[name] * (counts[name] + 1) <= trials
    ]
    return min(fits, key=counts.__getitem__, default=None)


def _random(dimensions: int, seed: int, numbers: Sequence[int]) -> np.ndarray:
    rows = [np.random.default_rng([seed, number]).random(dimensions) for number in numbers]
    return np.reshape(rows, (len(numbers), dimensions))


def _halton(dimensions: int, seed: int, numbers: Sequence[int]) -> np.ndarray:
    with needs_extra("sweep"):
        from scipy.stats import qmc
    sequence = qmc.Halton(dimensions, scramble=True, rng=seed)
    return sequence.random(max(numbers, default=0) + 1)[np.asarray(numbers, int)]
