"""The value of `--task`: the name of a built-in task, or module:attribute for a user's own task.

A module is looked up as by `python -m`, in the current folder first.
"""

import argparse
import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from optlab.cli._errors import UsageError, in_a_shell, usage_errors
from optlab.cli._expressions import suggestions
from optlab.cli._known import FLAG, OPTIMIZERS, Argument
from optlab.cli._options import optimizers_of, settings_of, value_of
from optlab.cli._task_errors import task_errors
from optlab.lab import Task, tasks
from optlab.lab.tasks._check_task import check_task

TASKS: Mapping[str, Callable[..., Task]] = {
    "digits-mlp": tasks.digits_mlp,
    "digits-cnn": tasks.digits_cnn,
    "valley": tasks.valley,
}


def make_task(options: argparse.Namespace) -> Task:
    """Return the task that --task names, made with --batch-size and with --set.

    Args:
        options: the options of the command.

    Raises:
        UsageError: there is no such task, it cannot be made, or the lab cannot train it.
    """
    values, name = task_values(options), options.task
    if ":" in name:
        return load_task(name, values)
    try:
        return TASKS[name](**values)
    except ValueError as error:
        raise UsageError(str(error)) from error


def task_values(options: argparse.Namespace) -> dict[str, Any]:
    """Return the values that options set of arguments of the function that makes the task.

    Of a task of the user's own, these are all that no optimizer has; and what both have, which only
    the signatures of built-in tasks tell.
    """
    name = options.task
    of_optimizers = {key for who in optimizers_of(options) for key in OPTIMIZERS[who].arguments}
    of_task = set() if ":" in name else inspect.signature(TASKS[name]).parameters.keys()
    values = {} if options.batch_size is None else {"batch_size": options.batch_size}
    for key, value in settings_of(options).items():
        if key in of_task or key not in of_optimizers:
            values[key] = value
    return values


def find_task(name: str) -> Task | Callable[..., Task]:
    """Return the task that `--task` names, or the function that makes it, without calling it.

    Raises:
        UsageError: there is no such task or function.
    """
    if ":" not in name:
        return TASKS[name]
    who = f"--task {name}"
    target = _resolve(who, name)
    if not isinstance(target, Task):
        _check_callable(who, target)
    return target


def find_optimizer(name: str) -> Callable[..., Any]:
    """Return the function that module:attribute names in `--optimizers`, without calling it.

    Raises:
        UsageError: there is no such function.
    """
    who = f"--optimizers {name}"
    target = _resolve(who, name, "functions", _functions_in)
    if not callable(target):
        raise UsageError(
            f"{who}: a function of hyperparameters that returns an optimizer is required, "
            f"got {_kind(target)}"
        )
    return target


def _resolve(
    who: str,
    name: str,
    kind: str = "tasks",
    there: Callable[[ModuleType], list[str]] | None = None,
) -> Any:
    """Return the object that module:attribute names.

    Args:
        who: how errors begin.
        name: the name.
        kind: the kind of what should be there, for errors.
        there: a function that returns what there is of that kind in a module; None for tasks.
    """
    module_name, _, attribute = name.partition(":")
    with task_errors(name, f"importing {module_name}", who):
        module = _import(who, module_name)
    with task_errors(name, f"looking up {attribute}", who):
        return _attribute(who, module, attribute, kind, there or _tasks_in)


def load_task(name: str, options: Mapping[str, Any], who: str = "") -> Task:
    """Return the task that module:attribute names.

    Args:
        name: the name.
        options: arguments of the function that makes it.
        who: how errors begin; by default with --task and the name.

    Raises:
        UsageError: there is no such task, it cannot be made, or the lab cannot train it.
    """
    who = who or f"--task {name}"
    target = _resolve(who, name)
    if isinstance(target, Task):
        _check_no_options(who, options)
        task = target
    else:
        _check_takes(who, target, options)
        values = with_flags(who, target, options)
        with task_errors(name, f"calling {name.partition(':')[2]}", who):
            task = target(**values)
        if not isinstance(task, Task):
            required = "the function must return an optlab.lab.Task"
            raise UsageError(f"{who}: {required}, got {_kind(task)}")
    try:
        with task_errors(name, "checking the task", who):
            check_task(who, task)
    except ValueError as error:
        raise in_a_shell(error) from error
    return task


def with_flags(who: str, make: Callable[..., Task], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values, with True or False for arguments that are so by default.

    Any other word would count as true in the user's own function.
    """
    flags = flags_of(make)
    read = {
        name: value_of(flags[name], str(value)) if name in flags else value
        for name, value in values.items()
    }
    with usage_errors():
        for name in flags.keys() & read.keys():
            flags[name].check(who, read[name])
    return read


def flags_of(make: Callable[..., Task]) -> dict[str, Argument]:
    """Return the arguments of a function that are true or false by default."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # some functions written in C have no signature
        return {}
    return {
        name: Argument(name, FLAG, parameter.default)
        for name, parameter in parameters.items()
        if isinstance(parameter.default, bool)
    }


def _flag(option: str) -> str:
    return "--batch-size" if option == "batch_size" else f"--set {option}"


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _import(who: str, name: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the missing module is another one, which this module imports
        raise UsageError(f"{who}: {_not_found(error.name, folder)}") from error


def _not_found(name: str, folder: str) -> str:
    """Say where a module was looked for, and which modules there have similar names."""
    package_name, _, last = name.rpartition(".")
    if not package_name:
        hint = suggestions(last, (module.name for module in pkgutil.iter_modules([folder])))
        return f"there is no module {name!r} in {folder}, and none is installed{hint}"
    package = sys.modules[package_name]
    if not hasattr(package, "__path__"):
        return f"there is no module {name!r}: {package_name} is no package, but {package.__file__}"
    hint = suggestions(last, (module.name for module in pkgutil.iter_modules(package.__path__)))
    return (
        f"the package {package_name} in {', '.join(package.__path__)} has no module {last!r}{hint}"
    )


def _attribute(
    who: str,
    module: ModuleType,
    dotted: str,
    kind: str,
    there: Callable[[ModuleType], list[str]],
) -> Any:
    value, path = module, module.__name__
    for part in dotted.split("."):
        if not hasattr(value, part):
            public = [name for name in dir(value) if not name.startswith("_")]
            names = ", ".join(there(module)) or "none"
            hint = suggestions(part, public)
            raise UsageError(f"{who}: {path} has no {part!r}{hint} ({kind} there: {names})")
        value, path = getattr(value, part), f"{path}.{part}"
    return value


def _tasks_in(module: ModuleType) -> list[str]:
    """Return the names of a module's tasks, and of functions annotated to return one."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (isinstance(value, Task) or _says_it_returns_one(value))
    ]


def _functions_in(module: ModuleType) -> list[str]:
    """Return the names of the public functions that a module defines itself."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and inspect.isfunction(value)
        and value.__module__ == module.__name__
    ]


def _says_it_returns_one(value: Any) -> bool:
    returned = getattr(value, "__annotations__", {}).get("return") if callable(value) else None
    return returned is Task or (isinstance(returned, str) and returned.split(".")[-1] == "Task")


def _check_no_options(who: str, options: Mapping[str, Any]) -> None:
    for option in options:
        raise UsageError(
            f"{who}: this is a Task, not a function with an argument {option!r}; "
            f"leave out {_flag(option)}"
        )


def _check_callable(who: str, make: Any) -> None:
    if not callable(make):
        required = "an optlab.lab.Task, or a function that returns one, is required"
        raise UsageError(f"{who}: {required}, got {_kind(make)}")


def _check_takes(who: str, make: Any, options: Mapping[str, Any]) -> None:
    """Require a function that accepts the options that were set and needs no other arguments."""
    _check_callable(who, make)
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # some functions written in C have no signature
        return
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    for option in options:
        if option not in by_name and not takes_any:
            raise UsageError(
                f"{who}: the function has no argument {option!r}; leave out {_flag(option)}"
            )
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for p in parameters:
        if p.default is p.empty and p.kind not in variadic and p.name not in options:
            or_option = f", or pass {_flag(p.name)}" if p.name in options else ""
            raise UsageError(
                f"{who}: the function needs an argument {p.name!r}; give it a default{or_option}"
            )
