"""Which optimizers the data tell apart over several tasks: Friedman's ranks and Nemenyi's test.

On each of N tasks the k optimizers are ranked by what it costs them to reach the target; equal
ones, such as all that miss it, share the mean of their ranks. Two optimizers are told apart if
their mean ranks differ by more than

    q √(k (k + 1) / (6 N))

where √2 q is the 95% point of the studentized range of k independent normal numbers. If all
optimizers were equal, any pair at all would be told apart in at most about 5% of benchmarks.

Resampled tasks, as for the intervals of profiles, are no test: of 13 equal optimizers on 6 tasks,
a comparison of each to the leader by resampled areas told some apart in 40% of simulated
benchmarks, and this test in 3%.

References: Nemenyi, "Distribution-free multiple comparisons", Princeton (1963); Demšar,
"Statistical comparisons of classifiers over multiple data sets", JMLR 7 (2006).
"""

from functools import cache

import numpy as np

from optlab._extras import needs_extra

CONFIDENCE = 0.95
"""The share of benchmarks of equal optimizers in which nothing is told apart."""


def mean_ranks(costs: np.ndarray) -> np.ndarray:
    """Return the mean rank of each optimizer, from 1 for the best on all tasks.

    Args:
        costs: (tasks, optimizers) float; ∞ for a miss.

    Example:
        >>> mean_ranks(np.array([[10.0, 20.0, np.inf, np.inf], [10.0, 5.0, 7.0, np.inf]])).tolist()
        [2.0, 1.5, 2.75, 3.75]
    """
    with needs_extra("Bench.ties"):
        from scipy.stats import rankdata

    return rankdata(costs, axis=1).mean(axis=0)


@cache
def critical_difference(optimizers: int, tasks: int) -> float:
    """Return the difference of mean ranks from which on two optimizers are told apart.

    Args:
        optimizers: how many there are, ≥ 2.
        tasks: on how many tasks, ≥ 1.

    Example:
        Demšar's table has q = 2.569 for 4 optimizers, and 14 tasks give 1.25.

        >>> round(critical_difference(4, 14), 2)
        1.25
    """
    with needs_extra("Bench.ties"):
        from scipy.stats import studentized_range

    q = studentized_range.ppf(CONFIDENCE, optimizers, np.inf) / 2**0.5
    return float(q * (optimizers * (optimizers + 1) / (6 * tasks)) ** 0.5)


def fewest_tasks(optimizers: int) -> int:
    """Return the number of tasks from which on any optimizers can be told apart at all.

    Args:
        optimizers: how many there are, ≥ 2.

    Example:
        Of three optimizers, ranks differ by 2 at most, and on two tasks they must by 2.34.

        >>> fewest_tasks(3)
        3
    """
    tasks = 1
    while critical_difference(optimizers, tasks) >= optimizers - 1:
        tasks += 1
    return tasks


def told_apart(costs: np.ndarray, leader: int) -> list[int]:
    """Return the optimizers that are worse than the leader, as far as the data can tell.

    Args:
        costs: (tasks, optimizers) float; ∞ for a miss.
        leader: the index of the leader.
    """
    tasks, optimizers = costs.shape
    if optimizers == 1:
        return []
    behind = mean_ranks(costs) - mean_ranks(costs)[leader]
    return np.flatnonzero(behind > critical_difference(optimizers, tasks)).tolist()
