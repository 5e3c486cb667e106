"""`snapshots`: the members of an ensemble from one run, whose rate falls to 0 again and again.

    α(t) = α₀/2 · (cos(π · mod(t − 1, L) / L) + 1),    L = ⌈T/M⌉,    t = 1, 2, …, T

T is `steps` and M is `cycles`. A member is taken after update c·L of each cycle c, where the rate
is lowest, and before the next update raises it to α₀ again. The last cycle ends with the run, and
may be shorter. The optimizer's state, with its momentum, goes on through a restart.

`schedules.cosine_restarts(α₀, decay_steps=math.ceil(T / M))` is this α: it is evaluated at t − 1.

Reference: Huang, Li, Pleiss, Liu, Hopcroft, Weinberger, ICLR (2017); Loshchilov & Hutter, ICLR
(2017) for the schedule.
"""

import math

import optax

from optlab import _checks
from optlab._types import Array
from optlab.lab.ensembles._ensemble import Ensemble
from optlab.lab.ensembles._members import Rates, stack, train_in_parts
from optlab.lab.tasks._check_task import check_in_memory, check_predicts, check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training import _loop

_WHO = "snapshots"


def snapshots(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    cycles: int = 5,
    steps: int,
    key: Array,
) -> Ensemble:
    """Train once with a cyclic rate, and return the models at the end of each cycle.

    The run is the one that `train` makes with this key. Later members are better, as they were
    trained for longer: `snapshots(…)[-3:]` are the last three. Whether the rate restarts is read
    from the state, which optimizers of this library keep it in; of others it is not known.

    Args:
        task: a classification, with `Task.predict`.
        optimizer: the optimizer, with a rate that restarts every ⌈steps/cycles⌉ updates, such as
            `schedules.cosine_restarts(0.2, decay_steps=math.ceil(steps / cycles))`; of groups of
            parameters each must have one.
        cycles: M ≥ 1, the number of members.
        steps: T ≥ M, the updates of the whole run.
        key: the random key of the run.

    Raises:
        ValueError: an argument is out of its range, the last of ⌈steps/cycles⌉ updates each would
            begin after the end, the task is not a valid classification, or after a cycle a rate
            does not rise.

    Example:
        >>> import jax, math, optlab
        >>> from optlab.lab import tasks
        >>> rate = optlab.schedules.cosine_restarts(0.1, decay_steps=math.ceil(90 / 3))
        >>> three = snapshots(
        ...     tasks.digits_mlp(width=16), optlab.sgd(rate), cycles=3, steps=90,
        ...     key=jax.random.key(0),
        ... )
        >>> three.labels
        ('update 30', 'update 60', 'update 90')

    Reference:
        Huang et al., ICLR (2017).
    """
    check_task(_WHO, task)
    check_in_memory(_WHO, task)
    check_predicts(_WHO, task)
    _checks.check_transformation(_WHO, optimizer, "optimizer")
    _checks.check_integer(_WHO, "cycles", cycles, 1)
    _checks.check_integer(_WHO, "steps", steps, 1)
    _loop.check_key(_WHO, key)
    stops = _ends(int(cycles), int(steps))
    parts = train_in_parts(task, optimizer, _loop.run_keys(key), stops, _check_restart)
    params, model_state = stack(parts)
    return Ensemble(
        tasks=(task,) * cycles,
        params=params,
        model_state=model_state,
        labels=tuple(f"update {stop}" for stop in stops),
        shared_start=True,
        ordered=True,
    )


def _check_restart(stop: int, before: Rates, after: Rates) -> None:
    """Require that every rate rises after the end of a cycle."""
    for group, rate in before.items():
        if not after[group] > rate:
            name = f"{group}/learning_rate" if group else "learning_rate"
            _checks.fail(
                _WHO,
                f"the rate must restart after {stop} updates, where a cycle ends",
                f"{name} {rate:.3g} before and {after[group]:.3g} after",
                "pass schedules.cosine_restarts(0.1, decay_steps=math.ceil(steps / cycles)), say",
            )


def _ends(cycles: int, steps: int) -> list[int]:
    """Return the number of updates done at the end of each cycle."""
    length = math.ceil(steps / cycles)
    if (cycles - 1) * length >= steps:
        required = f"steps must leave updates to each of {cycles} cycles"
        got = f"steps={steps}, which {math.ceil(steps / length)} cycles of {length} use up"
        _checks.fail(_WHO, required, got, f"pass steps={cycles * length}, say")
    return [min(cycle * length, steps) for cycle in range(1, cycles + 1)]
