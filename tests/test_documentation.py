"""What the documentation shows is true: doctests, and the README's example."""

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import optlab

README = (Path(__file__).parent.parent / "README.md").read_text()
MODULES = ["optlab"] + [
    module.name
    for module in pkgutil.walk_packages(optlab.__path__, "optlab.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_run(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_most_public_functions_teach_by_example():
    finder = doctest.DocTestFinder(exclude_empty=True)
    with_examples = {
        test.name.split(".")[-1]
        for name in MODULES
        for test in finder.find(importlib.import_module(name))
        if test.examples
    }
    assert len(with_examples & set(optlab.__all__)) >= 7


def test_the_readmes_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    average = optlab.averaged_params(names["state"])
    # What its last comment says; the schedule ends before the last digits settle.
    np.testing.assert_allclose([*average["w"], average["b"]], [1, -2, 0.5, 3], atol=0.02)


def test_the_readmes_table_lists_every_row():
    from optlab import registry

    listed = set(re.findall(r"`([a-z_0-9]+)", README))
    rows = {*registry.OPTIMIZERS, *registry.TRANSFORMATIONS}
    rows |= {*registry.WRAPPERS, *registry.SCHEDULES}
    assert {name.split(".")[0] for name in rows} <= listed
