"""`optlab tune`: seven steps from a model to a tuned, explained run, with a report."""

import argparse
import sys
from collections.abc import Callable

import optax

from optlab.cli._errors import DIVERGED, value_errors
from optlab.cli._optimizers import swept
from optlab.cli._output import log, require
from optlab.cli._sweep import range_of, task_of
from optlab.cli._task_errors import task_errors
from optlab.cli._tasks import find_optimizer
from optlab.lab import Tuning, tune


def run(options: argparse.Namespace) -> int | None:
    """Tune, print the steps or the JSON.

    Returns:
        The exit status; None for that of success.
    """
    require("tune", "rich", "scipy")
    options.rate = options.schedule = None
    known = [name for name in options.optimizers or [] if ":" not in name]
    options.optimizer = [*known, "adamw"][0]
    optimizers = None
    if options.optimizers or options.set or options.clip:
        names = options.optimizers or ["adamw", "momentum"]
        optimizers = {name: _constructor(options, name) for name in names}
    terminal = sys.stderr.isatty()
    with task_errors(options.task), value_errors():
        result = tune(
            task_of(options),
            budget=options.budget,
            optimizers=optimizers,
            space={name: range_of(entry) for name, entry in options.space.items()} or None,
            steps=options.steps,
            seed=options.seed,
            quick=options.quick,
            go_on=options.go_on,
            ensemble=options.ensemble,
            folder=options.out,
            callbacks=() if terminal else (_log_steps(),),
            progress=terminal,
        )
    print(result.to_json() if options.json else result)
    if not options.json:
        files = "report.html, report.md" + (", recipe.py" if result.winner else "")
        print("", f"Wrote {files} in {options.out}", sep="\n")
    failed = any(step.verdict == "failed" for step in result.steps)
    return None if result.winner and not failed else DIVERGED


def _constructor(
    options: argparse.Namespace, name: str
) -> Callable[..., optax.GradientTransformation]:
    if ":" in name:
        return find_optimizer(name)
    return swept(argparse.Namespace(**{**vars(options), "optimizer": name}))


def _log_steps() -> Callable[[Tuning, str], None]:
    """Return a callback that writes a line for each step that begins and ends."""
    said: set[tuple[str, str]] = set()

    def on_change(tuning: Tuning, text: str) -> None:
        del text
        for number, step in enumerate(tuning.steps, 1):
            if step.verdict in ("waiting", "skipped") or (step.name, step.verdict) in said:
                continue
            said.add((step.name, step.verdict))
            what = step.question if step.verdict == "running" else step.evidence
            verdict = "" if step.verdict == "running" else f"{step.verdict}: "
            log(f"{tuning.seconds:>7.1f} s  {number}. {step.name}: {verdict}{what}")

    return on_change
