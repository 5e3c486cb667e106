"""Options that several commands share, functions that read their values, and what they must be.

One word has one meaning in all commands. Nothing here needs JAX.
"""

import argparse
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from optlab._domains import Domain
from optlab._paths import file_of, folder_of
from optlab.cli._errors import UsageError, check_known, value_errors
from optlab.cli._expressions import evaluate
from optlab.cli._known import COMPARED, OPTIMIZERS, SCHEDULE_FORMS, TASKS, Argument
from optlab.cli._output import PLOT_FORMATS

LEAST_RATE, LARGEST_RATE = 2.0**-126, (2 - 2.0**-23) * 2.0**127
"""The least and the largest normal number of float32."""

FORM = "module:attribute"
"""How --task names a task of the user's own."""

RATE = "learning_rate"
"""The name that stands for the rate in --schedule."""

MOST_RUNS = 1_000_000
"""The largest number of seeds, trials or members."""

FLAGS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
"""What may be written for a value that is true or false."""


def declare(
    parser: argparse.ArgumentParser,
    check: Callable[[argparse.Namespace], None],
    *,
    description: str,
    epilog: str,
) -> None:
    """Say what a command does.

    Args:
        parser: the parser of the command.
        check: refuses options that do not fit, without JAX, before the command runs.
        description: lines at the beginning of the command's own help, printed unchanged.
        epilog: lines at the end of the command's own help, printed unchanged.
    """
    parser.description, parser.epilog = description, epilog
    parser.set_defaults(check=check)


def complete_with(action: argparse.Action, values: Iterable[str]) -> None:
    """Offer values of an option where a shell completes it."""
    action.completer = lambda **_: list(values)


def complete_list_with(action: argparse.Action, values: Iterable[str]) -> None:
    """Offer values of an option that takes several, separated by commas, each once."""

    def complete(prefix: str, **_: Any) -> list[str]:
        before, comma, _last = prefix.rpartition(",")
        return [f"{before}{comma}{name}" for name in values if name not in before.split(",")]

    action.completer = complete


def optimizer_list() -> str:
    """Return the optimizers with their formulas, for the end of a help."""
    rows = (f"  {name:<14}{known.summary}" for name, known in OPTIMIZERS.items())
    return "optimizers:\n" + "\n".join(rows)


def add_task(parser: argparse.ArgumentParser) -> None:
    """Add --task and --batch-size."""
    action = parser.add_argument(
        "--task",
        default="digits-mlp",
        metavar="NAME",
        help=f"the task to train: {', '.join(TASKS)}, or {FORM} for your own, which is a Task "
        "or a function that returns one (default: %(default)s)",
    )
    complete_with(action, TASKS)
    parser.add_argument(
        "--batch-size", type=count, metavar="N", help="examples per batch (default: the task's)"
    )


def add_optimizer(parser: argparse.ArgumentParser) -> None:
    """Add --optimizer, a name in `OPTIMIZERS`."""
    action = parser.add_argument(
        "--optimizer", default="adam", metavar="NAME", help="the optimizer (default: %(default)s)"
    )
    complete_with(action, OPTIMIZERS)


def add_updates(parser: argparse.ArgumentParser, *, schedule: bool = True) -> None:
    """Add --set, --clip and, where the rate may change during a run, --schedule."""
    action = parser.add_argument(
        "--set",
        type=named(str),
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another hyperparameter of the optimizer, or an argument of the function that makes "
        "the task, such as weight_decay=1e-4; may be repeated",
    )
    action.completer = _names_to_set
    parser.add_argument(
        "--clip", type=norm, metavar="NORM", help="clip gradients to this norm (default: off)"
    )
    if schedule:
        parser.add_argument(
            "--schedule",
            metavar="CALL",
            help=f"the course of the rate, as a call in quotes in which {RATE} stands for the "
            f'rate: "warmup_cosine({RATE}, warmup_steps=30, decay_steps=300)"; see '
            "optlab plot-schedule (default: constant)",
        )


def _names_to_set(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    known = arguments_of(parsed_args)
    return [f"{name}=" for name in known if name != RATE]


def add_seeds(parser: argparse.ArgumentParser, default: int, meaning: str = "runs") -> None:
    """Add --seeds.

    Args:
        parser: the parser to add it to.
        default: the default number of seeds.
        meaning: the meaning of the number, for the help: "runs at each rate".
    """
    parser.add_argument(
        "--seeds",
        type=runs,
        default=default,
        metavar="N",
        help=f"{meaning}, from different initializations and batches (default: %(default)s)",
    )


def add_seed(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add --seed, a whole number; `meaning` is the beginning of its help."""
    parser.add_argument(
        "--seed", type=natural, default=0, metavar="N", help=f"{meaning} (default: %(default)s)"
    )


def add_steps(parser: argparse.ArgumentParser, meaning: str, default: int | None = None) -> None:
    """Add --steps; `meaning` is its help, including what the default None means."""
    parser.add_argument("--steps", type=count, default=default, metavar="N", help=meaning)


def add_patience(parser: argparse.ArgumentParser, run: str, then: str) -> None:
    """Add `--patience`.

    Args:
        parser: where to add it.
        run: what ends early, such as "each run".
        then: what is done at the end, in the words of the help.
    """
    parser.add_argument(
        "--patience",
        type=patience,
        metavar="N[,NAME=VALUE…]",
        help=f"stop {run} after N evaluations in a row without improvement, and {then} (default: "
        "train to the end). With min_delta=NUMBER an improvement must be larger than this; with "
        "start=UPDATES evaluations before this update do not count; a run also stops at a score as "
        "good as target=SCORE, or worse than divergence=SCORE. An example: 5,start=200,target=0.95",
    )


def add_out_folder(parser: argparse.ArgumentParser, default: str, files: str) -> None:
    """Add --out, a folder for `files`."""
    parser.add_argument(
        "--out",
        type=folder,
        default=Path(default),
        metavar="FOLDER",
        help=f"where to write {files} (default: %(default)s)",
    )


def add_out_plot(parser: argparse.ArgumentParser, default: str) -> None:
    """Add --out, the file of a plot."""
    parser.add_argument(
        "--out",
        type=file,
        default=Path(default),
        metavar="FILE",
        help=f"the file of the plot, in {', '.join(PLOT_FORMATS)} (default: %(default)s)",
    )


def add_results(parser: argparse.ArgumentParser, what: str, more: str = "") -> None:
    """Add --results.

    Args:
        parser: the parser of the command.
        what: what is stored.
        more: what else there is to say of the file.
    """
    parser.add_argument(
        "--results",
        type=file,
        metavar="FILE",
        help=f"store {what} in this SQLite file as they end, and continue from it{more} "
        "(default: none)",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument(
        "--json",
        action="store_true",
        help="print the results as JSON instead of the table, and nothing else on stdout",
    )


def names(text: str) -> list[str]:
    """Read names separated by commas."""
    return _once([name.strip() for name in text.split(",")])


def rates(text: str) -> list[float]:
    """Read learning rates separated by commas, or LOW:HIGH:COUNT."""
    import numpy as np

    if ":" not in text:
        return _once([rate(part) for part in text.split(",")])
    match text.split(":"):
        case low, high, number_of if number_of.isdecimal() and 2 <= int(number_of) <= 1000:
            low, high = rate(low), rate(high)
        case _:
            raise argparse.ArgumentTypeError(
                "a range must read LOW:HIGH:COUNT with COUNT from 2 to 1000, such as 1e-4:10:11, "
                f"got {text!r}"
            )
    if low >= high:
        raise argparse.ArgumentTypeError(f"LOW must be below HIGH in LOW:HIGH:COUNT, got {text!r}")
    return np.geomspace(low, high, int(number_of)).tolist()


def rate(text: str) -> float:
    """Read a learning rate, a normal number of float32."""
    return _normal("a rate", text)


def norm(text: str) -> float:
    """Read the norm to which gradients are clipped, a normal number of float32."""
    return _normal("a norm", text)


def _normal(what: str, text: str) -> float:
    value = number(text)
    if not LEAST_RATE <= value <= LARGEST_RATE:
        raise argparse.ArgumentTypeError(
            f"{what} must be from {LEAST_RATE:.2g} to {LARGEST_RATE:.2g}, got {text!r}"
        )
    return value


def number(text: str) -> float:
    """Read a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"expected a finite number such as 1e-3, got {text!r}")
    return value


def within(what: str, domain: Domain) -> Callable[[str], float]:
    """Return a reader of a number in a domain."""

    def read(text: str) -> float:
        value = number(text)
        if not domain.contains(value):
            raise argparse.ArgumentTypeError(f"{what} must be {domain.description}, got {text!r}")
        return value

    return read


def count(text: str) -> int:
    """Read a whole number, ≥ 1 and below 2**31."""
    return _whole(text, 1)


def patience(text: str) -> dict[str, Any]:
    """Read N or N,NAME=VALUE,…, arguments of `EarlyStopping` by name."""
    first, *others = text.split(",")
    values = {"patience": count(first)}
    for other in others:
        name, value = named(str)(other)
        if name not in STOPPING:
            expected = ", ".join(STOPPING)
            raise argparse.ArgumentTypeError(f"expected names of {expected}, got {other!r}")
        if name in values:
            raise argparse.ArgumentTypeError(f"names must differ, got {name} twice")
        values[name] = STOPPING[name](value)
    return values


def _not_negative(text: str) -> float:
    value = number(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"expected a number >= 0, got {text!r}")
    return value


def runs(text: str) -> int:
    """Read a number of runs, ≥ 1; so many at most that a list of them fits into memory."""
    value = count(text)
    if value > MOST_RUNS:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_RUNS}, got {text!r}")
    return value


def several(text: str) -> int:
    """Read a whole number, ≥ 2 and below 2**31."""
    return _whole(text, 2)


def natural(text: str) -> int:
    """Read a whole number, ≥ 0 and below 2**31."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal()) or (len(text) < 12 and int(text) < least):
        raise argparse.ArgumentTypeError(f"expected a whole number >= {least}, got {text!r}")
    if len(text) >= 12 or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"expected a whole number below 2**31, got {text!r}")
    return int(text)


STOPPING = {"min_delta": _not_negative, "start": natural, "target": number, "divergence": number}
"""What may be said of early stopping beside the patience, and the readers of the values."""


def folder(text: str) -> Path:
    """Read a folder on this machine."""
    return Path(_place(folder_of, text))


def folder_or_bucket(text: str) -> Path | str:
    """Read a folder on this machine, or an address that begins with gs://."""
    return _place(partial(folder_of, addresses=["gs://"]), text)


def file(text: str) -> Path:
    """Read a file on this machine."""
    return Path(_place(file_of, text))


def scalar(text: str) -> float | int | bool | str | None:
    """Read a number, true, false or none; anything else is a string."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for read in (int, float):
        with suppress(ValueError):
            return read(text)
    return text


def named(read: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """Return a reader of NAME=VALUE, the value read by `read`."""

    def read_named(text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        if not (equals and name.isidentifier() and value):
            raise argparse.ArgumentTypeError(f"expected NAME=VALUE, got {text!r}")
        return name, read(value)

    return read_named


def value_of(argument: Argument | None, text: str) -> Any:
    """Read the value of an argument; where it is true or false, also yes, no, on and off."""
    if argument is not None and argument.is_flag:
        return FLAGS.get(text.lower(), text)
    return scalar(text)


def arguments_of(options: argparse.Namespace) -> dict[str, Argument | None]:
    """Return the arguments of the optimizers and of a built-in task, by name.

    Of optimizers that differ in an argument's limits, the first one counts.
    """
    known: dict[str, Argument | None] = {}
    for name in reversed(optimizers_of(options)):
        known |= OPTIMIZERS[name].arguments if name in OPTIMIZERS else {}
    if options.task in TASKS:
        known = {**TASKS[options.task].arguments, **known}
    return known


def optimizers_of(options: argparse.Namespace) -> Sequence[str]:
    """Return the names of the optimizers that a command trains with."""
    one = getattr(options, "optimizer", None)
    return [one] if one is not None else options.optimizers or COMPARED


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return the values of --set, by name."""
    known = arguments_of(options)
    return {name: value_of(known.get(name), text) for name, text in options.set}


def check_task_name(options: argparse.Namespace) -> None:
    """Require the form of a task's name, and a batch size that a built-in task allows."""
    if ":" in options.task:
        check_form("--task", options.task)
        return
    check_known("task", options.task, TASKS, also=f"; {FORM} is a task of your own")
    if options.batch_size is None:
        return
    argument = TASKS[options.task].arguments.get("batch_size")
    if argument is None:
        raise UsageError(f"the task {options.task!r} has no batches; leave out --batch-size")
    with value_errors():
        argument.check(options.task, options.batch_size)


def check_form(option: str, name: str, example: str = "task") -> None:
    """Require the form module:attribute in the value of an option."""
    module_name, _, attribute = name.partition(":")
    as_path = module_name.endswith(".py") or "/" in module_name or os.sep in module_name
    parts = [*module_name.split("."), *attribute.split(".")]
    if not as_path and all(part.isidentifier() for part in parts):
        return
    dotted = ".".join(Path(module_name.removesuffix(".py")).parts)
    meant = f"; did you mean '{dotted}:{attribute}'?" if as_path and attribute else ""
    raise UsageError(
        f"argument {option}: expected {FORM} with dots between names, such as "
        f"mypackage.mymodule:{example}, got {name!r}{meant}"
    )


def check_settings(options: argparse.Namespace) -> None:
    """Require names of arguments in --set, each once, and values within their limits."""
    names = [name for name, _ in options.set]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"argument --set: names must differ, got {name} twice")
    known = arguments_of(options)
    for name, value in settings_of(options).items():
        check_argument_name("argument --set", options, name, known)
        if name == RATE:
            raise UsageError(f"argument --set: {_rate_has_its_own(options)}")
        if name == "batch_size" and options.batch_size is not None:
            raise UsageError("batch_size is in --set and in --batch-size; leave out one of them")
        for who, argument in owners_of(options, name):
            with value_errors():
                argument.check(who, value)


def _rate_has_its_own(options: argparse.Namespace) -> str:
    for word in ("rate", "rates", "min_lr", "space"):
        if hasattr(options, word):
            return f"the learning rate has an option of its own, --{word.replace('_', '-')}"
    raise AssertionError(options)


def check_argument_name(
    where: str, options: argparse.Namespace, name: str, known: Mapping[str, Argument | None]
) -> None:
    """Require a name of an argument; a task or an optimizer of the user's own may have any."""
    if name in known or any(":" in own for own in (options.task, *optimizers_of(options))):
        return
    optimizers = optimizers_of(options)
    whose = optimizers[0] if len(optimizers) == 1 else "the optimizers"
    try:
        check_known(f"hyperparameter of {whose}", name, [*known])
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def owners_of(options: argparse.Namespace, name: str) -> list[tuple[str, Argument]]:
    """Return the optimizers and the built-in task that have an argument of this name."""
    functions = {name: OPTIMIZERS[name] for name in optimizers_of(options) if name in OPTIMIZERS}
    functions |= {name: TASKS[name] for name in [options.task] if name in TASKS}
    return [(who, f.arguments[name]) for who, f in functions.items() if name in f.arguments]


def check_schedule(options: argparse.Namespace, names: Mapping[str, Any] | None = None) -> set[str]:
    """Require a schedule of the rate in --schedule; return which names it uses.

    Args:
        options: the options.
        names: further names that the schedule may use, each with a value.
    """
    if options.schedule is None:
        return set()
    used = check_call("--schedule", options.schedule, {RATE: 1e-3, **(names or {})})
    if RATE not in used:
        raise UsageError(
            f"argument --schedule: {RATE} must stand in it for the rate, got {options.schedule!r}"
        )
    return used


def check_call(option: str, text: str, names: Mapping[str, Any] | None = None) -> set[str]:
    """Require the call of a schedule; return which of the names it uses."""
    used: set[str] = set()
    try:
        result = evaluate(text, SCHEDULE_FORMS, "schedule", names, used)
    except (ValueError, RecursionError, OverflowError) as error:
        raise UsageError(f"argument {option}: {error}") from error
    if result._fields and RATE not in result._fields:
        raise UsageError(f"argument {option}: expected a schedule, got {text!r}")
    return used


def check_seeds(options: argparse.Namespace) -> None:
    """Require seeds that JAX can take."""
    if options.seed + options.seeds > 2**31:
        raise UsageError("argument --seeds: the last seed must be below 2**31")


def seeds_of(options: argparse.Namespace) -> list[int]:
    """Return the seeds --seed, --seed + 1, …, as many as --seeds."""
    return list(range(options.seed, options.seed + options.seeds))


def _place(read: Callable[[str, str, str], Path | str], text: str) -> Path | str:
    """Return the place that `read` returns, but a relative path as it was written."""
    try:
        place = read("optlab", "the path", text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("optlab: ")) from error
    return place if isinstance(place, str) or text.startswith("~") else Path(text)


def _once(values: list[Any]) -> list[Any]:
    for value in values:
        if value == "":
            raise argparse.ArgumentTypeError("expected names separated by commas, got an empty one")
        if values.count(value) > 1:
            raise argparse.ArgumentTypeError(f"values must differ, got {value} twice")
    return values
