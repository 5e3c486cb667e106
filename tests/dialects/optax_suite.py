"""Run Optax's own tests on `optlab.dialects.optax`: `python tests/dialects/optax_suite.py`.

An argument is a folder with Optax's source, such as an unpacked sdist. Without one, the installed
package is taken if it has its tests, or else the sdist of that version is downloaded with pip. The
tests are copied into a temporary folder. Behind their imports, every name of Optax that has a
stand-in is replaced by it, also where the tests reach it through one of Optax's private modules.
Optax itself stays as it is: what it builds for itself does not use the stand-ins.

The run fails if a test fails that `EXCEPTIONS` does not list, or if one that it lists passes. With
--optax nothing is replaced, which shows what fails in Optax alone. Needs absl-py, scikit-learn and
pytest.
"""

import argparse
import ast
import fnmatch
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import optax

ROOT = Path(__file__).parents[2]

FOLDERS = ("_src", "transforms", "schedules", "tree_utils", "contrib")
"""Optax's packages whose tests use optimizers, transformations, schedules or their states."""

EXCEPTIONS: dict[str, str] = {
    "contrib/_schedule_free_test::*::test_schedule_free_adamw": (
        "the result in float64 is missed by 1e-7 with the stand-in, and by 4e-6 with the rule of "
        "Optax to which it is compared, whose bias corrections in float32 are off by up to 2e-5"
    ),
    "_src/linear_algebra_test::*::test_nnls[45]": "Optax's nnls misses its tolerance by a rounding",
    "_src/sharding_test::*lbfgs": "Optax's lbfgs cannot reshape an explicitly sharded array",
    "_src/sharding_test::*::test_microbatch_with_explicit_sharding_sharded": (
        "Optax's microbatch cannot reshape an explicitly sharded array"
    ),
    "transforms/_clipping_test::*::test_clip_by_block_rms": (
        "Optax's clip_by_block_rms is a unit in the last place below 1, and 7 places are asked for"
    ),
    "transforms/_freezing_test::*bad_structure*": (
        "Optax's freeze is expected to raise another message than this version of JAX has"
    ),
}
"""Tests that fail, as patterns of `file::class::test`, each with the reason.

All but the first fail in Optax alone, too (`--optax`), with jax 0.10 on a CPU.
"""

SHIM = '''
"""What the rewritten tests import; written by optax_suite.py."""
import types

import optax
from optlab.dialects import optax as stand_in
from optlab.dialects.optax import _rules

REPLACED = {
    id(getattr(theirs, name)): getattr(ours, name)
    for theirs, ours, names in (
        (optax, stand_in, _rules.__all__),
        (optax.contrib, stand_in.contrib, stand_in.contrib.__all__),
    )
    for name in names
}


def standing(value):
    if value is optax:
        return stand_in
    if not isinstance(value, types.ModuleType):
        return REPLACED.get(id(value), value)
    module = types.ModuleType(value.__name__, value.__doc__)
    names = {name: REPLACED.get(id(own), own) for name, own in vars(value).items()}
    vars(module).update(names)
    return module
'''

CONFTEST = '''
"""Counts the calls of the stand-ins' updates; written by optax_suite.py."""
import json
import pathlib

from optlab.dialects.optax import _stand_in

made = 0
lifted = _stand_in._lifted


def counted(rules):
    update = lifted(rules)

    def counting(*args):
        global made
        made += 1
        return update(*args)

    return counting


_stand_in._lifted = counted


def pytest_sessionfinish(session):
    (pathlib.Path(__file__).parent / "made.json").write_text(json.dumps(made))
'''


def download(folder: Path) -> Path:
    """Return the unpacked source of the installed version of Optax."""
    name = f"optax=={version('optax')}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    subprocess.run([*pip, "--no-binary", ":all:", "--dest", str(folder), name], check=True)
    (archive,) = folder.glob("optax-*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(folder, filter="data")
    return next(path for path in folder.iterdir() if path.is_dir())


def rewritten(text: str) -> str:
    """Return a test file whose names of Optax are replaced by stand-ins behind the imports."""
    text = text.replace(
        "from optax._src import alias_test", "import _src__alias_test as alias_test"
    )
    # Compared as strings, JAX 0.10 comes before 0.7.2, and the tests of sharding skip themselves.
    text = re.sub(r"jax\.__version__ < '[0-9.]+'", "False", text)
    names, last = [], 0
    for node in ast.parse(text).body:
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        last = node.end_lineno
        for alias in node.names:
            module = node.module if isinstance(node, ast.ImportFrom) else alias.name
            if module.split(".")[0] == "optax":
                is_path = isinstance(node, ast.Import) and alias.asname is None
                names.append(alias.asname or (alias.name.split(".")[0] if is_path else alias.name))
    lines = text.splitlines()
    new = ["from shim import standing as _standing"]
    new += [f"{name} = _standing({name})" for name in dict.fromkeys(names)]
    return "\n".join([*lines[:last], *new, *lines[last:]]) + "\n"


def write(source: Path, folder: Path, *, replace: bool) -> list[Path]:
    """Write the test files into a folder; return their paths."""
    (folder / "shim.py").write_text(SHIM if replace else "standing = lambda value: value\n")
    (folder / "conftest.py").write_text(CONFTEST)
    paths = []
    for package in FOLDERS:
        for path in sorted((source / "optax" / package).glob("*_test.py")):
            paths.append(folder / f"{package}__{path.name}")
            paths[-1].write_text(rewritten(path.read_text()))
    return paths


def run(path: Path) -> tuple[dict[str, str], int]:
    """Run one file; return {test: outcome}, and how often a stand-in's update was called."""
    report = path.with_suffix(".xml")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--quiet",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
    ]
    command += ["-o", "addopts=", f"--junit-xml={report}", "--tb=short", path.name]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{path.parent}"}
    done = subprocess.run(
        command, cwd=path.parent, env=environment, capture_output=True, text=True, check=False
    )
    if not report.exists():
        raise SystemExit(f"{path.name} did not run:\n{done.stdout}{done.stderr}")
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        parts = case.get("classname").split(".")[1:]
        name = "::".join([path.stem.replace("__", "/"), *parts, case.get("name")])
        kinds = {child.tag for child in case}
        outcome = "failed" if kinds & {"failure", "error"} else "passed"
        # A test and its subtests have one name: what failed once has failed.
        if outcomes.get(name) != "failed":
            outcomes[name] = "skipped" if "skipped" in kinds else outcome
        for child in case:
            if child.tag in ("failure", "error"):
                path.with_suffix(".log").open("a").write(f"{name}\n{child.text}\n")
    return outcomes, json.loads((path.parent / "made.json").read_text())


def main() -> None:
    """Print a table of the files and what fails; exit with 1 where that is not as listed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, help="a folder with Optax's source")
    parser.add_argument("--optax", action="store_true", help="replace nothing")
    parser.add_argument("--only", default="*", help="a pattern of files, such as _src/alias*")
    parser.add_argument("--logs", action="store_true", help="print why tests fail")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        installed = Path(optax.__file__).parents[1]
        has_tests = any(installed.glob("optax/_src/*_test.py"))
        source = arguments.source or (installed if has_tests else download(folder))
        total, unexpected, hit = Counter(), [], set()
        print("| tests of Optax | passed | failed | skipped | calls of a stand-in's update |")
        print("| --- | ---: | ---: | ---: | ---: |")
        (folder / "tests").mkdir()
        for path in write(source, folder / "tests", replace=not arguments.optax):
            file = path.stem.replace("__", "/")
            if not fnmatch.fnmatch(file, arguments.only):
                continue
            outcomes, made = run(path)
            counts = Counter(outcomes.values())
            row = [counts[kind] for kind in ("passed", "failed", "skipped")]
            print(f"| `{file}` | {' | '.join(map(str, [*row, made]))} |", flush=True)
            total += Counter(counts | {"made": made})
            for test, outcome in outcomes.items():
                patterns = [p for p in EXCEPTIONS if fnmatch.fnmatchcase(test, p)]
                hit |= set(patterns) if outcome == "failed" else set()
                if (outcome == "failed") != bool(patterns) and outcome != "skipped":
                    unexpected.append(f"{test} {outcome}")
            log = path.with_suffix(".log")
            if arguments.logs and log.exists():
                print(log.read_text())
        row = [total[kind] for kind in ("passed", "failed", "skipped", "made")]
        print(f"| all | {' | '.join(map(str, row))} |")
    for pattern in sorted(hit):
        print(f"- `{pattern}`: {EXCEPTIONS[pattern]}")
    if arguments.only == "*":
        unexpected += [f"{pattern} matches no test" for pattern in EXCEPTIONS if pattern not in hit]
    if unexpected and not arguments.optax:
        raise SystemExit("\n".join(["not as listed:", *unexpected]))


if __name__ == "__main__":
    main()
