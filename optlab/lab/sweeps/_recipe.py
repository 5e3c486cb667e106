"""`Recipe`: from a trial's values to its task and optimizer, and which values can be traced."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import optax

from optlab import _checks
from optlab._types import Array, Tree
from optlab.groups._assignment import Rules
from optlab.lab.data import is_stream
from optlab.lab.sweeps._space import Categorical, Integer, Range
from optlab.lab.tasks._task import Task
from optlab.lab.training import _loop
from optlab.lab.training._grouping import grouped

Values = Mapping[str, Any]
"""The values of one trial, by name."""


@dataclass(frozen=True)
class Recipe:
    """What a trial trains, as a function of its values.

    Args:
        task: a task, or a function of some of the values that returns one.
        optimizer: a function of the other values that returns the optimizer.
        names: the names of all values.
        groups: rules for groups of parameters; None for one group.
        who: the public name that errors begin with.

    Raises:
        ValueError: a name is accepted by neither function, or a required argument has no range.
    """

    task: Task | Callable[..., Task]
    optimizer: Callable[..., optax.GradientTransformation]
    names: Sequence[str]
    groups: Rules | None = None
    who: str = "sweep"

    def __post_init__(self):
        """Check that each value has a function that accepts it, and each argument a value."""
        if not callable(self.optimizer):
            _checks.fail(
                self.who,
                "optimizer must be a function of hyperparameters",
                repr(self.optimizer),
                "pass optlab.adamw, or lambda learning_rate: optlab.adamw(learning_rate, b1=0.8)",
            )
        if not isinstance(self.task, Task) and not callable(self.task):
            _checks.fail(
                self.who, "task must be a Task, or a function that returns one", f"{self.task!r}"
            )
        for name in self.names:
            if not any(_takes(function, name) for function in self._functions()):
                signatures = " and ".join(
                    f"{what} takes {', '.join(_parameters(function)) or 'nothing'}"
                    for what, function in zip(
                        ("optimizer", "task"), self._functions(), strict=False
                    )
                )
                required = "space must name arguments of optimizer or task"
                _checks.fail(self.who, required, name, signatures)
        for what, function in zip(("optimizer", "task"), self._functions(), strict=False):
            for parameter in _parameters(function).values():
                if parameter.default is parameter.empty and parameter.name not in self.names:
                    _checks.fail(
                        self.who,
                        f"space must have {parameter.name}, a required argument of {what}",
                        f"{', '.join(self.names)}",
                        f"add it, or pass as {what} a function that does not need it",
                    )

    def make(self, values: Values) -> tuple[Task, optax.GradientTransformation]:
        """Return the task and the optimizer of one trial."""
        optimizer = self.make_optimizer(values)
        if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
            required = "optimizer must return an optax.GradientTransformation"
            _checks.fail(self.who, required, repr(optimizer))
        task = self.make_task(values)
        return task, grouped(task, optimizer, self.groups)

    def make_optimizer(self, values: Values) -> Any:
        """Return what the function of the optimizer makes of the values of one trial."""
        return self.optimizer(**self.optimizer_values(values))

    def make_task(self, values: Values) -> Task:
        """Return the task of one trial."""
        if isinstance(self.task, Task):
            return self.task
        task = self.task(**self.task_values(values))
        if not isinstance(task, Task):
            _checks.fail(self.who, "task must return a Task", repr(task))
        return task

    def task_values(self, values: Values) -> Values:
        """Return the values of a trial that its task depends on."""
        return {} if isinstance(self.task, Task) else self._arguments_of(self.task, values)

    def optimizer_values(self, values: Values) -> Values:
        """Return the values of a trial that its optimizer depends on."""
        return self._arguments_of(self.optimizer, values)

    def _functions(self) -> tuple[Callable, ...]:
        return (self.optimizer,) if isinstance(self.task, Task) else (self.optimizer, self.task)

    def _arguments_of(self, function: Callable, values: Values) -> dict[str, Any]:
        """Return the values for a function: those it names; for **kwargs those that none names."""
        named_parameters = set().union(*map(_parameters, self._functions()))
        return {
            name: value
            for name, value in values.items()
            if name in _parameters(function)
            or (name not in named_parameters and _takes(function, name))
        }


def _parameters(function: Callable) -> dict[str, inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind in kinds}


def _takes(function: Callable, name: str) -> bool:
    kinds = {p.kind for p in inspect.signature(function).parameters.values()}
    return name in _parameters(function) or inspect.Parameter.VAR_KEYWORD in kinds


def name_of(value: Any) -> str:
    """Name a function, with the arguments that `functools.partial` sets, as any process would."""
    if isinstance(value, bool | int | float | str | None):
        return repr(value)
    if isinstance(value, partial):
        arguments = {**dict(enumerate(value.args)), **value.keywords}
        arguments_text = (f"{name}={name_of(argument)}" for name, argument in arguments.items())
        return f"{name_of(value.func)}({', '.join(arguments_text)})"
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}.{kind.__qualname__}"


def traced_types(
    recipe: Recipe, space: Mapping[str, Range], example: Values, batch: Tree | None = None
) -> dict[str, type]:
    """Return the values that can be arguments of a compiled program, name → type.

    If a range has `traced=None`, its values are traced if they are real numbers and the program can
    be traced with them.

    Args:
        recipe: what to train.
        space: name → range.
        example: values of one trial.
        batch: a batch of the task's loader; None if batches come from `Task.batch`.

    Raises:
        ValueError: a value of `LogUniform` or `Uniform`, or of a range with `traced=True`, cannot
            be traced.
    """
    candidates = {
        name: type_of(values) for name, values in space.items() if is_traced_if_possible(values)
    }
    with suppress(Exception):  # the user's code may raise any error for a tracer
        _trace(recipe, example, candidates, batch)
        return candidates
    _trace(recipe, example, {}, batch)  # raises errors that do not come from tracing
    traceable = {}
    for name, dtype in candidates.items():
        try:
            _trace(recipe, example, {name: dtype}, batch)
            traceable[name] = dtype
        except Exception as error:
            if not isinstance(space[name], Categorical) or space[name].traced:
                _fail_untraceable(recipe.who, name, space[name], error)
    return traceable


def is_traced_if_possible(values: Range) -> bool:
    """Return whether the values of a range are arguments of a program where that can be traced."""
    if values.traced is not None:
        return values.traced
    if isinstance(values, Categorical):
        return all(isinstance(choice, float) for choice in values.choices)
    return not isinstance(values, Integer)


def type_of(values: Range) -> type:
    """Return the type that holds all values of a range."""
    if isinstance(values, Integer):
        return int
    kinds = {type(choice) for choice in values.choices} if isinstance(values, Categorical) else {}
    return next((kind for kind in (bool, int) if kinds == {kind}), float)


def _fail_untraceable(who: str, name: str, values: Range, error: Exception) -> NoReturn:
    remedy = "leave out traced=True, and each choice is compiled in"
    if not isinstance(values, Categorical):
        remedy = (
            "give it a few choices, as Categorical([…]), which are compiled in, or pass "
            f"{type(values).__name__}(…, traced=False) to compile for every value "
            "(optlab.lab.tasks.dropout is a dropout whose rate may be traced)"
        )
    required = f"{name} must be usable as a traced number, to share one compiled program"
    first_line = str(error).splitlines()[0] if str(error) else ""
    raise ValueError(
        f"{who}: {required}, got a task or an optimizer that raises {type(error).__name__}: "
        f"{first_line}; {remedy}"
    ) from error


def _trace(recipe: Recipe, example: Values, types: Mapping[str, type], batch: Tree | None) -> None:
    """Trace one update and one evaluation, with the values in `types` as traced arguments."""

    def run(traced: dict[str, Array]) -> Any:
        task, optimizer = recipe.make({**example, **traced})
        keys = _loop.run_keys(jax.random.key(0))
        state = _loop.begin(task, optimizer, keys)
        data = task.splits["validation"] if task.splits else None
        if batch is None:
            state, loss = _loop.update(task, optimizer, keys, state, jnp.int32(0))
        else:
            state, loss = _loop.update_on(task, optimizer, state, batch, keys.noise)
        metrics = () if is_stream(data) else task.evaluate(state.params, state.model_state, data)
        return state, loss, metrics

    jax.eval_shape(run, {name: jnp.asarray(example[name], t) for name, t in types.items()})
