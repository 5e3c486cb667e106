"""The house: who may import whom, what is public, how it is documented."""

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import optlab
from optlab import registry

ROOT = Path(optlab.__file__).parent
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.rglob("*.py"))
}

# Each room may import from itself, from the rooms named here, and from what those may import.
ROOMS = {
    "_types": [],
    "_domains": [],
    "_checks": ["_types", "_domains"],
    "_facts": [],
    "_paths": ["_domains"],
    "_tree": ["_checks"],
    "_jaxpr": [],
    "rules": ["_tree"],
    "_inspect": ["rules"],
    "_identity": ["rules", "_facts"],
    "_describe": ["_inspect"],
    "schedules": ["_tree"],
    "transforms": ["rules"],
    "optimizers": ["rules"],
    "wrappers": ["rules", "_jaxpr"],
    "groups": ["rules"],
    "regularization": ["rules"],
    "scaling": ["wrappers"],
    "dialects": ["optimizers", "transforms", "schedules", "_inspect"],
    "reference": [],
    "registry": ["optimizers", "transforms", "wrappers", "schedules", "reference"],
    "testing": ["registry", "_inspect"],
    "mup": ["groups", "_report", "plots"],
    "native": ["_tree", "_jaxpr"],
    "sharding": ["rules", "wrappers"],
    "_extras": [],
    "_report": [],
    "_divergence": [],
    "plots": ["schedules", "_extras", "_report", "_divergence"],
    "lab": [
        "optimizers",
        "transforms",
        "wrappers",
        "schedules",
        "groups",
        "native",
        "_describe",
        "plots",
        "sharding",
        "_paths",
        "_identity",
    ],
    "cli": ["registry", "lab", "dialects"],
    "__main__": ["cli"],
    # optlab/__init__.py
    "": [
        "optimizers",
        "transforms",
        "wrappers",
        "groups",
        "regularization",
        "scaling",
        "dialects",
        "schedules",
        "reference",
        "native",
        "mup",
        "sharding",
        "_inspect",
        "_describe",
    ],
}
CORE = {"jax", "numpy", "optax"}
EXTRAS = {"argcomplete", "equinox", "flax", "matplotlib", "rich", "scipy", "sklearn"}
EXTRAS |= {"cloudpickle", "distributed", "mlflow", "optuna", "orbax", "tensorboardX", "wandb"}
# Layers are classes, so a file of models needs Flax at its top; it is imported within functions.
LAZY = {"optlab.lab.tasks._models"}
# The lab's rooms, each with those that it may import from.
LAB = {
    "data": [],
    "tasks": ["data"],
    "training": ["tasks"],
    "tracking": ["training", "sweeps"],
    "rates": ["sweeps"],
    "sweeps": ["training"],
    "comparison": ["sweeps"],
    "benchmarking": ["sweeps"],
    "diagnosis": ["training"],
    "ensembles": ["sweeps"],
    "tuning": ["rates", "diagnosis", "ensembles"],
}


def room(module):
    return [*module.split("."), ""][1]


def reachable(name, rooms=ROOMS):
    found = {name}
    for other in rooms[name]:
        found |= reachable(other, rooms)
    return found


def imports(path, top_level_only=False):
    """The modules a file imports when it runs, `optlab` with the names taken from it."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    nodes = tree.body if top_level_only else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                package = path.relative_to(ROOT.parent).parent.parts
                base = ".".join(package[: len(package) - node.level + 1])
                yield base + (f".{node.module}" if node.module else "")
            elif node.module == "optlab":
                yield from (f"optlab.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("module", FILES)
def test_imports_go_one_way(module):
    allowed = reachable(room(module))
    for name in imports(FILES[module]):
        if name.split(".")[0] == "optlab":
            target = room(name)
            assert target in allowed or target not in ROOMS, f"{module} imports {name}"


@pytest.mark.parametrize("module", [name for name in FILES if name.count(".") > 2])
def test_rooms_of_the_lab_import_one_way(module):
    if not module.startswith("optlab.lab."):
        return
    allowed = reachable(module.split(".")[2], LAB)
    for name in imports(FILES[module]):
        if name.startswith("optlab.lab."):
            assert name.split(".")[2] in allowed, f"{module} imports {name}"


@pytest.mark.parametrize("module", FILES)
def test_the_core_needs_jax_optax_and_numpy_alone(module):
    outside = {name.split(".")[0] for name in imports(FILES[module], top_level_only=True)}
    outside -= set(sys.stdlib_module_names) | {"optlab"}
    allowed = {"numpy"} if room(module) == "reference" else CORE
    assert outside <= (allowed | EXTRAS if module in LAZY else allowed)
    everything = {name.split(".")[0] for name in imports(FILES[module])}
    everything -= set(sys.stdlib_module_names) | {"optlab"} | CORE
    in_extra_rooms = room(module) in {"lab", "plots", "cli", "__main__"}
    assert everything <= (EXTRAS if in_extra_rooms else set())


def test_everything_can_be_imported_without_the_extras():
    modules = sorted(set(FILES) - LAZY - {"optlab.__main__"})
    script = "import sys\n"
    script += "".join(f"sys.modules[{name!r}] = None\n" for name in sorted(EXTRAS))
    script += "".join(f"import {module}\n" for module in modules)
    subprocess.run([sys.executable, "-c", script], check=True)


def test_exports_are_complete():
    rooms = (
        "groups",
        "mup",
        "native",
        "optimizers",
        "regularization",
        "rules",
        "scaling",
        "schedules",
        "sharding",
        "testing",
        "transforms",
        "wrappers",
    )
    for name in ("optlab", *(f"optlab.{room}" for room in rooms)):
        module = importlib.import_module(name)
        assert len(module.__all__) == len(set(module.__all__))
        public = {
            key
            for key, value in vars(module).items()
            if not key.startswith("_")
            and (inspect.isfunction(value) or inspect.isclass(value))
            and value.__module__.startswith("optlab")
        }
        assert public <= set(module.__all__)
        assert all(hasattr(module, key) for key in module.__all__)


def test_every_public_rule_has_a_row_and_every_row_is_public():
    kinds = (registry.OPTIMIZERS, registry.DIRECTIONS, registry.TRANSFORMATIONS, registry.WRAPPERS)
    rows = [row for rows in (*kinds, registry.PASSED_ON) for row in rows.values()]
    rooms = {"dialects", "groups", "mup", "native", "reference", "regularization", "rules"}
    rooms |= {"scaling", "schedules"}
    helpers = {"averaged_params", "describe", "global_norm", "hyperparams", "loss_scale"}
    helpers |= {"monitored", "replace_hyperparams", "skip_counts"}
    helpers |= {"PowerEmaSnapshot", "power_ema_snapshot", "reconstruct", "reconstruction_error"}
    names = {row.constructor.__name__ for row in rows}
    names |= {row.direction.__name__ for row in registry.PASSED_ON.values()}
    assert names == set(optlab.__all__) - helpers - rooms
    not_schedules = {"Curve", "OneCycle", "epochs_to_steps"}
    schedules = {name.split(".")[0] for name in registry.SCHEDULES}
    assert schedules == set(optlab.schedules.__all__) - not_schedules
    assert all(getattr(optlab, row.constructor.__name__) is row.constructor for row in rows)


def public_functions():
    rooms = [optlab.groups, optlab.mup, optlab.native, optlab.regularization, optlab.scaling]
    for owner in (optlab, *rooms, optlab.schedules, optlab.sharding):
        for name in owner.__all__:
            value = getattr(owner, name)
            if inspect.isfunction(value):
                yield pytest.param(value, id=name)


@pytest.mark.parametrize("function", list(public_functions()))
def test_public_functions_document_every_argument(function):
    text = inspect.getdoc(function)
    parameters = inspect.signature(function).parameters
    assert text.splitlines()[0].endswith((".", ":"))
    if not parameters:
        return
    assert "Args:" in text
    reads_only = function in (
        optlab.global_norm,
        optlab.hyperparams,
        optlab.monitored,
        optlab.sharding.collectives,
    )
    assert ("Returns:" if reads_only else "Raises:") in text
    described = text.split("Args:")[1].split("\n\n")[0]
    for argument in parameters:
        assert any(f"    {stars}{argument}: " in described for stars in ("", "*", "**"))


@pytest.mark.parametrize("name", [m.name for m in pkgutil.iter_modules([str(ROOT / "optimizers")])])
def test_a_rules_file_opens_with_its_formula_and_its_reference(name):
    text = importlib.import_module(f"optlab.optimizers.{name}").__doc__
    assert " = −lr · " in text
    assert "Reference: " in text


def test_states_are_named_tuples_with_documented_fields():
    states = [
        value
        for name in optlab.wrappers.__all__
        if inspect.isclass(value := getattr(optlab.wrappers, name))
    ]
    for state in states:
        text = inspect.getdoc(state).split("Attributes:")[1]
        assert all(f"    {field}: " in text for field in state._fields)
