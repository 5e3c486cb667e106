"""What the documentation shows is true: doctests, and the examples of the README and of `docs/`."""

import doctest
import functools
import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest

import optlab

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
MODULES = ["optlab"] + [
    module.name
    for module in pkgutil.walk_packages(optlab.__path__, "optlab.")
    if not module.name.endswith("__main__")
]
# Their names are Optax's own, or are reached through `optlab.lab` and a shell.
NOT_LISTED = {"optlab.cli", "optlab.dialects.optax", "optlab.dialects.optax.contrib"}
NOT_LISTED |= {"optlab.lab.data"}
DIRECTIVE = re.compile(
    r"^\.\. (?:auto|py:)(module|function|class|data):: ([\w.]+)(?:\(.*\))?\n((?:   :.*\n)*)",
    re.MULTILINE,
)
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def blocks(page):
    """Yield language, code and first line of each block of Python in a page."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        yield *match.groups(), text.count("\n", 0, match.start(2))


def run_page(page):
    """Run the blocks of a page one after the other, as a reader would; return what they define."""
    names = {"__name__": page.stem}
    for language, code, line in blocks(page):
        if language == "python":
            exec(compile("\n" * line + code, page, "exec"), names)
            continue
        test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
        result = doctest.DocTestRunner().run(test, clear_globs=False)
        names |= test.globs
        assert result.failed == 0
    return names


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


def as_parameter(page):
    # These pages compile many training programs, which takes long.
    slow = {"averages_and_ensembles", "fine_tuning", "lab", "long_runs", "own_model", "tuning"}
    slow |= {"sharding", "which_schedule"}
    is_slow = page.stem in slow
    return pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if is_slow else [])


@pytest.mark.parametrize("page", [as_parameter(page) for page in PAGES if any(blocks(page))])
def test_examples_of_pages_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run_page(page)
    if page == README:
        # What its last comment says; the schedule ends before the last digits settle.
        np.testing.assert_allclose(names["w"], [1, -2, 0.5], atol=0.02)


def test_a_wrong_example_of_a_page_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\n```\n\n```pycon\n>>> x + 1\n3\n```\n")
    with pytest.raises(AssertionError):
        run_page(page)
    page.write_text("```python\nx = 1\n```\n\n```pycon\n>>> x + 1\n2\n>>> y = x\n```\n")
    assert run_page(page)["y"] == 1


def _is_shown(x):
    """Whether Sphinx lists a member of a module: a function or a class with a docstring."""
    kinds = inspect.isroutine(x), inspect.isclass(x), isinstance(x, functools.partial)
    return any(kinds) and bool(x.__doc__)


def test_the_pages_of_the_api_list_every_public_name():
    listed, objects = set(), set()
    for page in sorted((ROOT / "docs" / "api").glob("*.md")):
        for what, name, options in DIRECTIVE.findall(page.read_text()):
            # Sphinx puts the module of the page before a name, unless an option names another.
            name = ".".join([*re.findall(r":module: (\S+)", options), name])
            listed.add(name)
            module = pkgutil.resolve_name(name)
            if what == "module" and ":no-members:" not in options:
                members = {n: getattr(module, n) for n in module.__all__}
                shown = [n for n, x in members.items() if _is_shown(x)]
                listed |= {f"{name}.{n}" for n in shown}
                objects |= {id(members[n]) for n in shown}
    missing = []
    for name in MODULES:
        module = importlib.import_module(name)
        if "._" not in name and name not in NOT_LISTED:
            for own in getattr(module, "__all__", ()):
                if f"{name}.{own}" not in listed and id(getattr(module, own)) not in objects:
                    missing.append(f"{name}.{own}")
    assert missing == []


def test_the_pages_show_the_pictures_that_the_script_makes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs")
    pictures = importlib.import_module("pictures")
    shown = {name for page in PAGES for name in re.findall(r"_static/(\w+)\.png", page.read_text())}
    files = {path.stem: path for path in (ROOT / "docs" / "_static").glob("*.png")}
    assert shown == set(files) == set(pictures.NAMES)
    # A page with all of them must open at once, and clones stay small.
    assert sum(path.stat().st_size for path in files.values()) < 500_000


def test_the_page_of_tuning_has_the_shares_of_the_steps():
    from optlab.lab.tuning import _finals, _rates, _reading, _refinement, _search

    page = (ROOT / "docs" / "tuning.md").read_text()
    for step in (_rates, _search, _refinement, _reading):
        (row,) = re.findall(rf"^\| \d\. {step.STEP.name} \|.*$", page, re.MULTILINE)
        assert row.endswith(f"| {step.UNTIL:.0%} |")
    words = {2: "two", 3: "three", 4: "four", 5: "five"}
    assert f"best {words[_finals.FINALISTS]} candidates from {words[_finals.SEEDS]} seeds" in page
    assert f"up to {_search.MANY} trials" in page
    assert f"{words[_refinement.ROUNDS]} rounds of eight" in page
    assert _refinement.TRIALS == 8


def test_docstrings_become_restructured_text(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "_extensions")
    convert = importlib.import_module("restructured").as_restructured_text
    formula = [
        "A norm, |x|, of *all* a * b:",
        "",
        "    u = |x|",
        "    v = 2 * u",
        "",
        "Reference: X.",
    ]
    assert convert(formula) == [
        *(r"A norm, \|x\|, of *all* a \* b:", "", "::", "", "    u = |x|", "    v = 2 * u", ""),
        *("Reference: X.", ""),
    ]
    arguments = ["Args:", "    x: in `|x| * 2`,", "        or more.", "", "        A block."]
    assert convert(arguments)[:4] == [*arguments[:3], ""]
    assert convert(arguments)[4:] == ["    ::", "", "        A block.", ""]
    example = ["Example:", "    >>> 2 * 3", "    6"]
    assert convert(example) == [*example, ""]
    table = ["      rate", "adam    0.1"]
    assert convert(table) == ["::", "", "          rate", "    adam    0.1", ""]


def test_the_pages_list_every_row():
    from optlab import registry

    page = (ROOT / "docs" / "what_there_is.md").read_text()
    assert "{optimizers-table}" in page  # which the registry fills
    listed = set(re.findall(r"`([a-z_0-9]+)", page))
    rows = {*registry.TRANSFORMATIONS, *registry.WRAPPERS, *registry.SCHEDULES}
    assert {name.split(".")[0] for name in rows} <= listed
