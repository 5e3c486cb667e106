"""`Ensemble`: several models of one task, whose predictions are combined; and how to train one.

    deep ensemble    members differ in their initialization, the order of their data, or both
    best of a sweep  members differ in their hyperparameters

`snapshots`, in a module of its own, takes its members from one run.

Reference: Lakshminarayanan, Pritzel, Blundell, NeurIPS (2017); Fort, Hu, Lakshminarayanan,
arXiv:1912.02757 (2019) on what members differ in.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from optlab import _checks
from optlab._types import Array, Tree
from optlab.groups._assignment import Rules
from optlab.lab.ensembles._calibration import BINS
from optlab.lab.ensembles._combine import combine_log_probs
from optlab.lab.ensembles._ensemble_report import EnsembleReport, make_report
from optlab.lab.ensembles._members import stack, train_together
from optlab.lab.sweeps._recipe import Recipe, traced_types
from optlab.lab.sweeps._result import Sweep
from optlab.lab.sweeps._trial import COMPLETE, Trial
from optlab.lab.tasks._check_task import check_in_memory, check_predicts, check_task
from optlab.lab.tasks._task import Task
from optlab.lab.training import _loop
from optlab.lab.training._runner import Curves, TrialRuns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_OF = "ensemble.of"

SHARE = ("init", "data", None)
"""What the members of a deep ensemble may share."""

SAME_LOSS = 0.01
"""How far, relative to each other, two validation losses of the same run may lie apart after it was
trained in another program."""


class Member(NamedTuple):
    """One model of an ensemble.

    Attributes:
        params: its parameters.
        model_state: the rest of its state.
    """

    params: Tree
    model_state: Tree


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Several models of one task. `print` shows their scores; `ensemble[-3:]` are the last three.

    Attributes:
        tasks: the task of each member, the same object where members share it.
        params: arrays (members, …).
        model_state: arrays (members, …).
        labels: what each member is: "seed 0", "update 120" or "trial 7".
        shared_start: whether all members started from the same parameters.
        ordered: whether the members are snapshots of one run, in its order.
    """

    tasks: tuple[Task, ...]
    params: Tree = field(repr=False)
    model_state: Tree = field(repr=False)
    labels: tuple[str, ...]
    shared_start: bool
    ordered: bool = False

    def __len__(self) -> int:
        """The number of members."""
        return len(self.labels)

    def __getitem__(self, members: "slice | Sequence[int]") -> "Ensemble":
        """Return the ensemble of some members: a slice, or a list of their places."""
        if not isinstance(members, slice | Sequence) or isinstance(members, str):
            remedy = "one member is ensemble.members[place]"
            required = "an ensemble is indexed by a slice, or a list of places"
            _checks.fail("Ensemble", required, repr(members), remedy)
        try:
            places = np.arange(len(self))[members if isinstance(members, slice) else list(members)]
        except IndexError:
            required = f"places must be integers from {-len(self)} to {len(self) - 1}"
            _checks.fail("Ensemble", required, f"{members}")
        if not places.size:
            _checks.fail("Ensemble", "an ensemble must have at least one member", f"{members}")
        params, model_state = jax.tree.map(lambda x: x[places], (self.params, self.model_state))
        return Ensemble(
            tasks=tuple(self.tasks[place] for place in places),
            params=params,
            model_state=model_state,
            labels=tuple(self.labels[place] for place in places),
            shared_start=self.shared_start or len(places) == 1,
            ordered=self.ordered,
        )

    @property
    def task(self) -> Task:
        """The task of the first member, which has the data of all."""
        return self.tasks[0]

    @property
    def members(self) -> list[Member]:
        """The members, one by one."""
        leaves, structure = jax.tree.flatten(Member(self.params, self.model_state))
        return [structure.unflatten([leaf[i] for leaf in leaves]) for i in range(len(self))]

    def logits(self, data: Any) -> tuple[Array, Array]:
        """Return the logits of each member, and the labels.

        Args:
            data: as `Task.predict` takes it, such as `task.splits["test"]`.

        Returns:
            (members, n, classes) float, and (n,) int.
        """
        places_of: dict[int, list[int]] = defaultdict(list)
        for place, task in enumerate(self.tasks):
            places_of[id(task)].append(place)
        logits, order = [], []
        for places in places_of.values():
            part = self if len(places) == len(self) else self[places]
            rows, labels = _predict(part.task.predict, part.params, part.model_state, data)
            logits.append(rows)
            order += places
        return jnp.concatenate(logits)[np.argsort(order)], labels[0]

    def log_probs(self, data: Any, how: str = "probability") -> Array:
        """Return the log-probabilities of the ensemble; see `combine_log_probs`.

        Args:
            data: as `Task.predict` takes it, such as `task.splits["test"]`.
            how: "probability" or "logit", the mean that is taken over the members.

        Returns:
            (n, classes) float.
        """
        return combine_log_probs(self.logits(data)[0], how=how)

    def report(self, split: str | None = None, bins: int = BINS) -> EnsembleReport:
        """Return the scores of the members and of the ensemble, which can be printed and plotted.

        Args:
            split: the split to judge on; None for "test", or "validation" without one. The
                temperatures are fitted on "validation" in any case.
            bins: bins of the calibration error, ≥ 1.

        Raises:
            ValueError: there is no such split, or `bins` is out of its range.
        """
        splits = self.task.splits
        split = ("test" if "test" in splits else "validation") if split is None else split
        _checks.check_choice("Ensemble.report", "split", split, tuple(splits))
        bins = _checks.check_count("Ensemble.report", "bins", bins, 1)
        fitted_on = self.logits(splits["validation"])
        judged_on = fitted_on if split == "validation" else self.logits(splits[split])
        return make_report(
            self.task.name, split, self.labels, fitted_on, judged_on, bins, ordered=self.ordered
        )

    def __str__(self) -> str:
        return str(self.report())

    def plot(self) -> "Figure":
        """Draw the report; see `optlab.plots.plot_ensemble`.

        Raises:
            ModuleNotFoundError: Matplotlib is not installed.
        """
        return self.report().plot()


@partial(jax.jit, static_argnums=0)
def _predict(predict: Callable, params: Tree, model_state: Tree, data: Any) -> tuple[Array, Array]:
    """Return the logits and the labels of stacked members."""
    return jax.vmap(predict, in_axes=(0, 0, None))(params, model_state, data)


def ensemble(
    task: Task,
    optimizer: optax.GradientTransformation,
    *,
    members: int = 5,
    steps: int,
    seed: int = 0,
    share: str | None = None,
) -> Ensemble:
    """Train a deep ensemble: the same run from several seeds, in one compiled program.

    Member i is the run that `train` makes with the key `jax.random.key(seed + i)`, but for rounding
    in products of matrices, which XLA computes for all members at once. Where the local devices, or
    several of them, divide the members evenly, each device trains its share of them.

    `ensemble.of(sweep, …)` makes an ensemble of the best trials of a sweep instead.

    Args:
        task: a classification, with `Task.predict`.
        optimizer: that of every member; for groups of parameters, an `optlab.groups.partition`.
        members: the number of members, ≥ 1.
        steps: updates of each member, ≥ 1.
        seed: the seed of the first member, ≥ 0.
        share: what does not differ between members: "init" for the initialization (the members then
            differ in the order of their data and in their noise); "data" for the order of the data
            and the key of `Task.loss`; None to let both differ. What is shared is the first
            member's.

    Raises:
        ValueError: an argument is out of its range, or the task is not a valid classification.

    Example:
        Five networks, and what `print` writes:

            five = ensemble(tasks.digits_mlp(), optlab.adam(0.003), members=5, steps=300)
            print(five)

            digits-mlp: 5 models (seed 0 to seed 4) on the split 'test'

                                         error          NLL            Brier          ECE
            members                      0.018 ± 0.005  0.056 ± 0.009  0.027 ± 0.007  0.017 ± 0.004
            worst member                 0.0223         0.0657         0.0339         0.0223
            probability mean             0.0139         0.0476         0.0206         0.0178
            logit mean                   0.0139         0.0407         0.0188         0.0106
            probability mean, T = 0.819  0.0139         0.0425         0.0192         0.0135
            logit mean, T = 1.04         0.0139         0.0413         0.019          0.0125

    Reference:
        Lakshminarayanan, Pritzel, Blundell, NeurIPS (2017).
    """
    who = "ensemble"
    check_task(who, task)
    check_in_memory(who, task)
    check_predicts(who, task)
    _checks.check_transformation(who, optimizer, "optimizer")
    _checks.check_integer(who, "members", members, 1)
    _checks.check_integer(who, "steps", steps, 1)
    _checks.check_integer(who, "seed", seed, 0)
    _checks.check_integer(who, "seed + members", seed + members, 1)  # seeds must be int32
    _checks.check_choice(who, "share", share, SHARE)
    keys = _loop.seed_keys(jnp.arange(seed, seed + members))
    first = jax.tree.map(lambda key: key[jnp.zeros(members, int)], keys)
    if share == "init":
        keys = keys._replace(init=first.init)
    elif share == "data":
        keys = first._replace(init=keys.init)
    runs = train_together(task, optimizer, keys, int(steps))
    return Ensemble(
        tasks=(task,) * members,
        params=runs.params,
        model_state=runs.model_state,
        labels=tuple(f"seed {seed + member}" for member in range(members)),
        shared_start=share == "init" or members == 1,
    )


def ensemble_of(
    sweep: Sweep,
    *,
    best: int = 5,
    task: Task | Callable[..., Task],
    optimizer: Callable[..., optax.GradientTransformation],
    groups: Rules | None = None,
    seed: int = 0,
) -> Ensemble:
    """Make an ensemble of the best trials of a sweep; it is called as `lab.ensemble.of`.

    A sweep stores the values and the curves of its trials, and not their parameters. The best
    trials are therefore trained once more, as lanes of one compiled program (one for each set of
    values that cannot be traced), with the first seed of the sweep. The first losses are compared
    with those of the sweep, so that another task or seed is noticed. All begin from the same
    parameters, unless values of the sweep change what `Task.init` makes; `shared_start` says so.

    Args:
        sweep: the result of `sweep`.
        best: the number of trials, ≥ 1; all of them must have been trained to the end.
        task: what was passed to `sweep`.
        optimizer: what was passed to `sweep`.
        groups: what was passed to `sweep`.
        seed: what was passed to `sweep`.

    Raises:
        ValueError: an argument is out of its range, fewer trials are complete, the models of the
            trials have other shapes, or the trials are not those of the sweep.

    Example:
        With the same task and optimizer in both calls:

            sweep = lab.sweep(task, optlab.adamw, space, trials=32)
            five = lab.ensemble.of(sweep, best=5, task=task, optimizer=optlab.adamw)
            print(five)
    """
    if not isinstance(sweep, Sweep):
        _checks.fail(_OF, "sweep must be the result of sweep", type(sweep).__name__)
    _checks.check_integer(_OF, "best", best, 1)
    _checks.check_integer(_OF, "seed", seed, 0)
    trials = [trial for trial in sweep.ranked() if trial.status == COMPLETE][:best]
    if len(trials) < best:
        required = "best must not exceed the number of trials that were trained to the end"
        _checks.fail(_OF, required, f"best={best} of {len(trials)} such trials")
    recipe = Recipe(task, optimizer, tuple(sweep.space), groups)
    tasks = _tasks_of(recipe, trials)
    for one in {id(task): task for task in tasks}.values():
        check_task(_OF, one)
        check_in_memory(_OF, one)
        check_predicts(_OF, one)
    states = _train_again(sweep, recipe, trials, seed)
    _check_shapes(trials, states)
    params, model_state = stack([(run.params, run.model_state) for run in states])
    return Ensemble(
        tasks=tuple(tasks),
        params=params,
        model_state=model_state,
        labels=tuple(f"trial {trial.number}" for trial in trials),
        shared_start=_share_start(tasks, seed),
    )


ensemble.of = ensemble_of


def _tasks_of(recipe: Recipe, trials: Sequence[Trial]) -> list[Task]:
    """Return the task of each trial, the same object where no value differs that it depends on."""
    tasks: dict[str, Task] = {}
    for trial in trials:
        values = recipe.task_values(trial.values)
        tasks.setdefault(repr(values), recipe.make_task(trial.values))
    return [tasks[repr(recipe.task_values(trial.values))] for trial in trials]


def _share_start(tasks: Sequence[Task], seed: int) -> bool:
    """Return whether the runs of some tasks begin from the same parameters, all from one seed."""
    first, *others = {id(task): task for task in tasks}.values()
    key = jax.tree.map(lambda keys: keys[0], _loop.seed_keys(jnp.array([seed]))).init

    def start(task: Task) -> list[np.ndarray]:
        return [np.asarray(leaf) for leaf in jax.tree.leaves(jax.jit(task.init)(key)[0])]

    expected = start(first) if others else []
    return all(
        np.array_equal(one, other)
        for task in others
        for one, other in zip(start(task), expected, strict=True)
    )


def _train_again(
    sweep: Sweep, recipe: Recipe, trials: Sequence[Trial], seed: int
) -> list[_loop.TrainState]:
    """Return the state of each trial after its last update."""
    example = {name: values.at(0.5) for name, values in sweep.space.items()}
    runs = TrialRuns(
        _OF,
        recipe,
        traced_types(recipe, sweep.space, example),
        keys=_loop.seed_keys(jnp.array([seed])),
        eval_every=int(trials[0].steps[1]),
        lanes=len(trials),
    )
    points = [(trial.number, trial.values) for trial in trials]
    curves: dict[int, Curves] = {}
    with closing(runs.run(points, trials[0].num_updates, keep=True)) as running:
        for chunk in running:
            curves |= chunk
    for trial in trials:
        _check_same(trial, curves[trial.number])
    return [jax.tree.map(lambda x: x[0], runs.take(trial.number)) for trial in trials]


def _check_same(trial: Trial, curves: Curves) -> None:
    """Require that a trial begins as it did in the sweep; later, rounding may part the two."""
    was, became = (np.asarray(c.validation["loss"][0, :2]) for c in (trial, curves))
    if not np.allclose(became, was, rtol=SAME_LOSS):
        _checks.fail(
            _OF,
            f"trial {trial.number} must begin as in the sweep, with the validation losses {was}",
            f"{became}",
            "pass the task, the optimizer, the groups and the seed that sweep was called with",
        )


def _check_shapes(trials: Sequence[Trial], states: Sequence[_loop.TrainState]) -> None:
    """Require that the models of all trials can be stacked."""
    forms = []
    for run in states:
        leaves, structure = jax.tree.flatten((run.params, run.model_state))
        forms.append((structure, list(map(jnp.shape, leaves))))
    for trial, form in zip(trials, forms, strict=True):
        if form != forms[0]:
            _checks.fail(
                _OF,
                "the models of all trials must have the same arrays",
                f"others for {dict(trial.values)} than for {dict(trials[0].values)}",
                "combine the predictions of separate runs with combine_log_probs",
            )
