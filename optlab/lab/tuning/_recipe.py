"""`recipe`: the winner of a tuning as a script that needs none of the lab's tools.

The script calls the user's own functions, splits its random keys as the lab does, and loops itself.
So with the winner's seed it makes the run that the lab made, up to rounding. What no script can
import, such as a lambda, is left to the user on lines that say `FILL_IN`.
"""

import ast
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from optlab.lab.data import is_stream
from optlab.lab.sweeps._recipe import Recipe
from optlab.lab.tasks._task import Task
from optlab.lab.training import _loop
from optlab.lab.training._windows import batches_per_update
from optlab.lab.tuning._result import Winner
from optlab.lab.tuning._schedules import SCHEDULES
from optlab.lab.tuning._texts import number, shortened, winner_title

FILL_IN = "FILL IN"
"""What stands on the lines that are left to the user."""

WIDTH = 100

MOST_AT_ONCE = 10_000
"""Examples of a split that are evaluated together, unless the task says otherwise."""

PART = 1000
"""Examples that are evaluated together of a split with more."""

RESERVED = {
    *("SEED", "STEPS", "batch", "batch_key", "data", "evaluate", "init_key", "jax"),
    *("learning_rate", "loss", "metrics", "model_state", "noise_key", "np", "opt_state", "optax"),
    *("optimizer", "optlab", "params", "program", "read", "schedules", "split", "step", "stream"),
    *("sys", "task", "update"),
}
"""Names that the script uses itself."""


class ScriptForm(NamedTuple):
    """How a script writes a function that it cannot import.

    A closure that knows this has it as its attribute `script_form`.

    Attributes:
        make: a function that a script can import, or a `functools.partial` of one, which returns
            the same for the same arguments.
        before: partials of the transformations that are chained before what `make` returns.
    """

    make: Callable[..., Any]
    before: Sequence[partial] = ()


def recipe(
    winner: Winner,
    task: Task | Callable[..., Task],
    optimizer: Callable[..., optax.GradientTransformation],
    *,
    task_source: str | None = None,
) -> str:
    """Return a script that trains the winner.

    Args:
        winner: what to train with.
        task: the task, or the function of hyperparameters that makes it.
        optimizer: the function of hyperparameters that makes the winner's optimizer. If it, or
            `task`, has an attribute `script_form`, the script calls that in its place.
        task_source: where a script finds the task, as "module:attribute"; None to find out.

    Example:
        >>> import optlab
        >>> from optlab.lab import tasks
        >>> from optlab.lab.tuning._result import Interval
        >>> winner = Winner("sgd", "cosine", {"learning_rate": 0.01, "momentum": 0.9},
        ...     steps=300, stop=300, seed=0, score=Interval.of([0.97]), test=None, tied=[],
        ...     candidates=1)
        >>> script = recipe(winner, tasks.valley, optlab.sgd)
        >>> [line for line in script.splitlines() if line.startswith("optimizer = optlab")]
        ['optimizer = optlab.sgd(learning_rate=learning_rate, momentum=0.9)']
    """
    parts = Recipe(task, optimizer, list(winner.values), who="tune")
    made = parts.make_task(winner.values)
    names = _Names()
    task_lines = _task_lines(names, task, parts.task_values(winner.values), task_source)
    values = parts.optimizer_values(winner.values)
    optimizer_lines = _optimizer_lines(names, winner, optimizer, values)
    batches = _batches_per_update(parts, winner, made)
    body = [
        f"SEED, STEPS = {int(winner.seed)}, {int(winner.stop)}",
        "",
        *names.to_fill_in,
        *task_lines,
        *optimizer_lines,
        "",
        "init_key, batch_key, noise_key = jax.random.split(jax.random.key(SEED), 3)",
        "params, model_state = task.init(init_key)",
        "opt_state = optimizer.init(params)",
        *_update(made),
        *_loop_lines(made, batches),
        *_evaluation(made),
    ]
    return "\n".join([*_docstring(winner, made, names), "", *names.imports(body), *body]) + "\n"


class _Names:
    """The names by which a script knows functions, and what has to be written for that.

    Attributes:
        to_fill_in: the lines of functions that are left to the user.
        missing: what these functions make.
    """

    def __init__(self) -> None:
        self.to_fill_in: list[str] = []
        self.missing: list[str] = []
        self._imported: dict[str, tuple[str, str]] = {}

    def imports(self, body: Sequence[str]) -> Iterator[str]:
        """Yield the lines that import what the script uses."""
        text = "\n".join(body)
        own = [(name, *place) for name, place in self._imported.items()]
        installed = [entry for entry in own if _is_installed(entry[1])]
        others = [entry for entry in own if entry not in installed]
        if others:
            yield "import sys"
            yield ""
        yield "import jax"
        if "np." in text:
            yield "import numpy as np"
        yield "import optax"
        if "optlab." in text:
            yield "import optlab"
        if "schedules." in text:
            yield "from optlab import schedules"
        yield from map(_import, installed)
        yield ""
        if others:
            yield "# Where the task was when it was tuned:"
            for folder in dict.fromkeys(_folder(module) for _, module, _ in others):
                yield f"sys.path.insert(0, {folder!r})"
            yield from map(_import, others)
            yield ""

    def of(self, function: Any, wish: str = "") -> str | None:
        """Return an expression for a function; None if no script can import it.

        Args:
            function: a function, a class or anything else that has a name in a module.
            wish: the name that it is to have; "" for its own.
        """
        place = _place(function)
        if place is None:
            return None
        module, name = place
        if module in ("jax", "optax", "optlab"):
            return f"{module}.{name}"
        return self.at(module, name, wish)

    def at(self, module: str, name: str, wish: str = "") -> str:
        """Return an expression for an attribute of a module, with its import."""
        first, _, rest = name.partition(".")
        local = wish if wish and not rest else first
        taken = [*RESERVED, *(n for n, place in self._imported.items() if place != (module, first))]
        while local in taken:
            local += "_"
        self._imported[local] = (module, first)
        return f"{local}.{rest}" if rest else local

    def fill_in(self, name: str, what: str, function: Any, arguments: Sequence[str]) -> str:
        """Write a function that is left to the user, and return its name."""
        self.missing.append(what)
        self.to_fill_in += [
            f"def {name}({', '.join(arguments)}):",
            f"    # {FILL_IN}: a script cannot import {what} that was tuned,",
            f"    # {_described(function)}.",
            f'    raise NotImplementedError("{FILL_IN}: return {what}")',
            "",
            "",
        ]
        return name

    def value(self, value: Any) -> str | None:
        """Return an expression for a value; None if there is none."""
        if isinstance(value, np.generic) or (isinstance(value, jax.Array) and not value.ndim):
            value = value.item()
        if isinstance(value, float) and not math.isfinite(value):
            return f'float("{value}")'
        try:
            if ast.literal_eval(repr(value)) == value:
                return repr(value)
        except (ValueError, SyntaxError, TypeError):
            pass
        return self.of(value)


def _import(entry: tuple[str, str, str]) -> str:
    local, module, name = entry
    return f"from {module} import {name}" + (f" as {local}" if local != name else "")


def _is_installed(module: str) -> bool:
    return module.partition(".")[0] in ("flax", "jax", "optax", "optlab")


def _folder(module: str) -> str:
    """Return the folder from which a module was imported; "" for the current one."""
    package = sys.modules.get(module.partition(".")[0])
    file = getattr(package, "__file__", None)
    if file is None:
        return ""
    folder = Path(file).absolute().parent
    return str(folder.parent if hasattr(package, "__path__") else folder)


def _place(function: Any) -> tuple[str, str] | None:
    """Return the public module with the shortest name, and the name in it, of something."""
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__":
        return None
    package = module.partition(".")[0]
    modules = [m for m in sys.modules if m.partition(".")[0] == package and "._" not in m]
    for candidate in [*sorted(modules, key=lambda m: (m.count("."), m)), module]:
        if _attribute(candidate, name) is function:
            return candidate, name
    return None


def _home(task: Task) -> tuple[str, str] | None:
    """Return the module and the name by which a script can import a task that was made there."""
    places = [
        (module, name)
        for module, known in list(sys.modules.items())
        if module != "__main__" and known is not None
        for name, value in list(getattr(known, "__dict__", {}).items())
        if value is task and not name.startswith("_")
    ]
    return min(places, key=lambda place: (place[0].count("."), place), default=None)


def _attribute(module: str, name: str) -> Any:
    """Return an attribute of a module that has been imported; None if there is none."""
    first, *rest = name.split(".")
    inside = sys.modules.get(module)
    known = vars(inside).get(first) if inside is not None else None
    # Modules may make public names when they are asked for. They may warn of others.
    if known is None and first in getattr(inside, "__all__", ()):
        known = getattr(inside, first, None)
    for part in rest:
        known = getattr(known, part, None)
    return known


def _described(function: Any) -> str:
    """Say which function this is, and where it stands."""
    name = shortened(getattr(function, "__qualname__", type(function).__name__), 40)
    code = getattr(function, "__code__", None)
    if code is None:
        return name
    return f"{name} ({Path(code.co_filename).name}, line {code.co_firstlineno})"


def _task_lines(
    names: _Names, task: Task | Callable[..., Task], values: Mapping[str, Any], source: str | None
) -> list[str]:
    module, _, name = (source or "").partition(":")
    if isinstance(task, Task):
        if not name:
            module, name = _home(task) or ("", "")
        if name:
            return [f"task = {names.at(module, name, 'imported_task')}"]
        return [f"task = {names.fill_in('make_task', 'the task', task, ())}()"]
    if name and _attribute(module, name) is task:
        return _make(names, "task", names.at(module, name, "make_task"), task, values)
    function, positional, keywords = _unwrapped(_script_form(task).make)
    made = names.at(module, name, "make_task") if name else names.of(function, "make_task")
    return _make(names, "task", made, function, {**keywords, **values}, positional)


def _optimizer_lines(
    names: _Names, winner: Winner, optimizer: Callable, values: Mapping[str, Any]
) -> list[str]:
    lines, written = [], {}
    if "learning_rate" in values:
        source = SCHEDULES[winner.schedule].source(values["learning_rate"], winner.steps)
        name, _, rest = source.partition("(")
        arguments, _, part = rest.rpartition(")")
        lines += _call("learning_rate = ", name, arguments.split(", "), part)
        written = {"learning_rate": "learning_rate"}
    form = _script_form(optimizer)
    function, positional, keywords = _unwrapped(form.make)
    made = names.of(function, "make_optimizer")
    values = {**keywords, **values}
    lines += _make(names, "optimizer", made, function, values, positional, written)
    for place, before in enumerate(form.before, 1):
        name, (function, positional, keywords) = f"before_{place}", _unwrapped(before)
        lines += _make(names, name, names.of(function), function, keywords, positional)
        lines.append(f"optimizer = optax.chain({name}, optimizer)")
    # Rules that read the loss take it as another argument of `update`.
    return [*lines, "optimizer = optax.with_extra_args_support(optimizer)"]


def _make(
    names: _Names,
    what: str,
    made: str | None,
    function: Any,
    values: Mapping[str, Any],
    positional: Sequence[Any] = (),
    written: Mapping[str, str] | None = None,
) -> list[str]:
    """Return the lines that call a function for the task or the optimizer.

    Args:
        names: of the script.
        what: the name of the result, such as "task".
        made: the expression for the function; None if a script cannot import it.
        function: the function.
        values: its arguments by name.
        positional: its other arguments.
        written: the expressions of some of `values`.
    """
    texts = {name: names.value(value) for name, value in values.items()} | dict(written or {})
    unnamed = [names.value(value) for value in positional]
    if made is None or None in [*unnamed, *texts.values()]:
        texts = {name: text for name, text in texts.items() if text is not None}
        made = names.fill_in(f"make_{what}", f"the {what.replace('_', ' ')}", function, list(texts))
        unnamed = []
    arguments = [*filter(None, unnamed), *(f"{name}={text}" for name, text in texts.items())]
    return _call(f"{what} = ", made, arguments)


def _script_form(function: Any) -> ScriptForm:
    return getattr(function, "script_form", None) or ScriptForm(function)


def _unwrapped(function: Any) -> tuple[Any, Sequence[Any], Mapping[str, Any]]:
    """Return what `functools.partial` calls, with its arguments."""
    if isinstance(function, partial):
        return function.func, function.args, function.keywords
    return function, (), {}


def _call(begin: str, function: str, arguments: Sequence[str] | None, end: str = "") -> list[str]:
    """Return the lines of a call, with a line for each argument if they do not fit on one."""
    line = f"{begin}{function}({', '.join(arguments)}){end}"
    if len(line) <= WIDTH:
        return [line]
    return [f"{begin}{function}(", *(f"    {text}," for text in arguments), f"){end}"]


def _batches_per_update(parts: Recipe, winner: Winner, task: Task) -> int:
    """Return how many batches an update takes, where gradients are accumulated."""
    tx = parts.make_optimizer(winner.values)
    keys = _loop.run_keys(jax.random.key(0))
    return batches_per_update(tx, jax.eval_shape(partial(_loop.begin, task, tx), keys))


def _docstring(winner: Winner, task: Task, names: _Names) -> Iterator[str]:
    title = " ".join(f"{task.name}: {winner_title(winner)}".split())
    title = shortened(title.replace("\\", "/").replace('"', "'"), 60)
    yield f'"""Train the winner of the tuning of {title}.'
    yield ""
    yield f"Its {task.score}: {winner.score}. Seed {winner.seed} had"
    yield f"{number(winner.score.values[0])}; this script makes the same run, up to rounding."
    if winner.stop < winner.steps:
        yield ""
        yield f"The schedule is that of {winner.steps} updates; the run ends after {winner.stop},"
        yield "because later scores were worse."
    if names.missing:
        yield ""
        yield f"It cannot run yet: write {' and '.join(names.missing)} where it says {FILL_IN}."
    yield '"""'


def _update(task: Task) -> Iterator[str]:
    """Yield the function that makes one update."""
    yield ""
    yield ""
    yield "@jax.jit"
    if task.loader is None:
        yield "def update(params, model_state, opt_state, step):"
        yield "    batch = task.batch(batch_key, step)"
    else:
        yield "def update(params, model_state, opt_state, step, batch):"
    yield "    key = jax.random.fold_in(noise_key, step)"
    yield ""
    yield "    def loss_of(params):"
    yield "        return task.loss(params, model_state, batch, key)"
    yield ""
    yield "    (loss, new_state), grads = jax.value_and_grad(loss_of, has_aux=True)(params)"
    yield "    # A loss of complex numbers rises along the conjugate; real ones stay as they are."
    yield "    grads = jax.tree.map(jax.numpy.conj, grads)"
    yield '    more = {"value": loss, "grad": grads, "value_fn": lambda p: loss_of(p)[0]}'
    yield "    updates, opt_state = optimizer.update(grads, opt_state, params, **more)"
    yield "    return optax.apply_updates(params, updates), new_state, opt_state, loss"
    yield ""
    yield ""


def _loop_lines(task: Task, batches: int) -> Iterator[str]:
    """Yield the loop over the updates."""
    batch = ""
    if task.loader is not None:
        yield from _reader(task.loader)
        yield "stream = read()"
        batch = ", batch"
    if batches > 1:
        yield f"# The optimizer makes an update of {batches} batches."
    number_of_calls = "STEPS" if batches == 1 else f"{batches} * STEPS"
    yield f"for step in range({number_of_calls}):"
    if task.loader is not None:
        yield "    batch = jax.tree.map(np.asarray, next(stream))"
    arguments = f"params, model_state, opt_state, step{batch}"
    yield f"    params, model_state, opt_state, loss = update({arguments})"
    yield f"    if step % 100 == 0 or step == {number_of_calls} - 1:"
    yield '        print(f"update {step}: loss {loss:.4g}")'
    yield ""


def _reader(loader: Any) -> Iterator[str]:
    """Yield the generator of all batches of a loader, pass after pass."""
    again = "task.loader" if hasattr(loader, "__iter__") else "task.loader()"
    yield "def read():"
    if hasattr(loader, "set_epoch"):
        yield "    epoch = 0"
    yield "    while True:"
    if hasattr(loader, "set_epoch"):
        yield "        task.loader.set_epoch(epoch)"
        yield "        epoch += 1"
    yield f"        yield from {again}"
    yield ""
    yield ""


def _evaluation(task: Task) -> Iterator[str]:
    """Yield the evaluation at the end."""
    splits = [name for name in ("validation", "test") if name in task.splits]
    if not splits:
        yield "metrics = task.evaluate(params, model_state, None)"
        yield "print({name: float(value) for name, value in metrics.items()})"
        return
    parts = {name: _parts(task, name) for name in splits}
    if not any(parts.values()):
        yield f"for split in {splits!r}:".replace("'", '"')
        yield "    metrics = jax.jit(task.evaluate)(params, model_state, task.splits[split])"
        yield "    print(split, {name: float(value) for name, value in metrics.items()})"
        return
    yield "def evaluate(batches):"
    yield "    totals, examples = {}, 0"
    yield "    for batch in batches:"
    yield "        size = len(jax.tree.leaves(batch)[0])"
    yield "        for name, value in program(params, model_state, batch).items():"
    yield "            totals[name] = totals.get(name, 0.0) + size * float(value)"
    yield "        examples += size"
    yield "    return {name: total / examples for name, total in totals.items()}"
    yield ""
    yield ""
    yield "program = jax.jit(task.evaluate)"
    for name, text in parts.items():
        batches = text or f'[task.splits["{name}"]]'
        if text and not is_stream(task.splits[name]):
            yield f'data = task.splits["{name}"]'
        yield f"metrics = evaluate({batches})"
        yield f'print("{name}", metrics)'


def _parts(task: Task, split: str) -> str:
    """Return an expression for the batches of a split; "" if it is evaluated at once."""
    data = task.splits[split]
    if is_stream(data):
        again = f'task.splits["{split}"]' + ("" if hasattr(data, "__iter__") else "()")
        return f"(jax.tree.map(np.asarray, batch) for batch in {again})"
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(data)}
    if len(lengths) != 1 or lengths == {()}:
        return ""
    ((count,),) = lengths
    size = task.eval_batch or (PART if count > MOST_AT_ONCE else math.inf)
    if size >= count:
        return ""
    rows = f"x[i : i + {int(size)}]"
    return f"jax.tree.map(lambda x: {rows}, data) for i in range(0, {count}, {int(size)})"
