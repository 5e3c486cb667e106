"""What `--task` means: a built-in task by its name, or module:attribute, a task of the user's own.

A module is found as `python -m` finds it, the current folder first.
"""

import importlib
import inspect
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from optlab._expressions import suggestions
from optlab.cli._errors import UsageError, check_known
from optlab.cli._task_errors import task_errors
from optlab.lab import Task, tasks
from optlab.lab._task import check_task

TASKS: Mapping[str, Callable[..., Task]] = {
    "digits-mlp": tasks.digits_mlp,
    "digits-cnn": tasks.digits_cnn,
    "valley": tasks.valley,
}

FORM = "module:attribute"


def make_task(name: str, **given: Any) -> Task:
    """Return the task that `--task` names.

    Args:
        name: of a built-in task, or module:attribute.
        given: the options that the user may have given for the function that makes the task, None
            for those that were not.

    Raises:
        UsageError: there is no such task, it cannot be made, or it is not fit for the lab.
    """
    if ":" in name:
        return _load(name, given)
    check_known("task", name, TASKS, also=f"; {FORM} is a task of your own")
    make, chosen = TASKS[name], _chosen(given)
    for option in chosen:
        if option not in inspect.signature(make).parameters:
            raise UsageError(f"the task {name!r} has no batches; leave out {_flag(option)}")
    if not chosen:
        return make()
    try:
        return make(**chosen)
    except ValueError as error:
        raise UsageError(str(error)) from error


def find_task(name: str) -> Task | Callable[..., Task]:
    """Return the task that `--task` names, or the function that makes it, not called yet.

    Raises:
        UsageError: there is none.
    """
    if ":" not in name:
        check_known("task", name, TASKS, also=f"; {FORM} is a task of your own")
        return TASKS[name]
    found = _find(name)
    if not isinstance(found, Task):
        _check_callable(_who(name), found)
    return found


def _who(name: str) -> str:
    return f"--task {name}"


def _find(name: str) -> Any:
    """Return what module:attribute is."""
    module_name, _, attribute = name.partition(":")
    _check_form(name, module_name, attribute)
    with task_errors(name, f"importing {module_name}"):
        module = _import(_who(name), module_name)
    with task_errors(name, f"looking up {attribute}"):
        return _attribute(_who(name), module, attribute)


def _load(name: str, given: Mapping[str, Any]) -> Task:
    who, found = _who(name), _find(name)
    if isinstance(found, Task):
        _check_no_options(who, given)
        task = found
    else:
        _check_takes(who, found, given)
        with task_errors(name, f"calling {name.partition(':')[2]}"):
            task = found(**_chosen(given))
        if not isinstance(task, Task):
            required = "the function must return an optlab.lab.Task"
            raise UsageError(f"{who}: {required}, got {_kind(task)}")
    try:
        with task_errors(name, "checking the task"):
            check_task(who, task)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return task


def _chosen(given: Mapping[str, Any]) -> dict[str, Any]:
    return {option: value for option, value in given.items() if value is not None}


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _kind(value: Any) -> str:
    return "None" if value is None else type(value).__name__


def _check_form(name: str, module_name: str, attribute: str) -> None:
    as_path = module_name.endswith(".py") or "/" in module_name or os.sep in module_name
    parts = [*module_name.split("."), *attribute.split(".")]
    if not as_path and all(part.isidentifier() for part in parts):
        return
    dotted = ".".join(Path(module_name.removesuffix(".py")).parts)
    meant = f"; did you mean '{dotted}:{attribute}'?" if as_path and attribute else ""
    raise UsageError(
        f"argument --task: expected {FORM} with dots between names, such as "
        f"mypackage.mymodule:task, got {name!r}{meant}"
    )


def _import(who: str, name: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # another one, that this one imports
        raise UsageError(f"{who}: {_not_found(error.name, folder)}") from error


def _not_found(name: str, folder: str) -> str:
    """Say where a module is not, and which have names like it there."""
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


def _attribute(who: str, module: ModuleType, dotted: str) -> Any:
    found, path = module, module.__name__
    for part in dotted.split("."):
        if not hasattr(found, part):
            public = [name for name in dir(found) if not name.startswith("_")]
            there = ", ".join(_tasks_in(module)) or "none"
            hint = suggestions(part, public)
            raise UsageError(f"{who}: {path} has no {part!r}{hint} (tasks there: {there})")
        found, path = getattr(found, part), f"{path}.{part}"
    return found


def _tasks_in(module: ModuleType) -> list[str]:
    """Return the names of a module's tasks, and of functions that say they return one."""
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and (isinstance(value, Task) or _says_it_returns_one(value))
    ]


def _says_it_returns_one(value: Any) -> bool:
    returned = getattr(value, "__annotations__", {}).get("return") if callable(value) else None
    return returned is Task or (isinstance(returned, str) and returned.split(".")[-1] == "Task")


def _check_no_options(who: str, given: Mapping[str, Any]) -> None:
    for option in _chosen(given):
        raise UsageError(
            f"{who}: this is a Task, not a function with an argument {option!r}; "
            f"leave out {_flag(option)}"
        )


def _check_callable(who: str, make: Any) -> None:
    if not callable(make):
        required = "an optlab.lab.Task, or a function that returns one, is required"
        raise UsageError(f"{who}: {required}, got {_kind(make)}")


def _check_takes(who: str, make: Any, given: Mapping[str, Any]) -> None:
    """Require a function that can be called with the options that were chosen, and no others."""
    _check_callable(who, make)
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError):  # some that are written in C do not tell
        return
    by_name = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    chosen = _chosen(given)
    for option in chosen:
        if option not in by_name and not takes_any:
            raise UsageError(
                f"{who}: the function has no argument {option!r}; leave out {_flag(option)}"
            )
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for p in parameters:
        if p.default is p.empty and p.kind not in variadic and p.name not in chosen:
            or_option = f", or pass {_flag(p.name)}" if p.name in given else ""
            raise UsageError(
                f"{who}: the function needs an argument {p.name!r}; give it a default{or_option}"
            )
