"""Run optlab's checks on Optax's own optimizers, and print the tables of the documentation.

python benchmarks/optax_checks.py             what fails in each optimizer (a few minutes)
python benchmarks/optax_checks.py --checks    all checks, with what a failure means
"""

import argparse

import jax
import optax

from optlab.testing import CHECKS, check_transformation

OPTIMIZERS = (
    "sgd",
    "adagrad",
    "rmsprop",
    "adam",
    "adamw",
    "nadam",
    "amsgrad",
    "adabelief",
    "radam",
    "yogi",
    "lion",
    "lamb",
    "adafactor",
)


def checks_table() -> str:
    """Return all checks as a Markdown table."""
    lines = ["| check | a failure means |", "|---|---|"]
    lines += [f"| `{check.name}` | {check.meaning} |" for check in CHECKS.values()]
    return "\n".join(lines)


def optax_table() -> str:
    """Return what fails in each of Optax's optimizers as a Markdown table."""
    lines = ["| optimizer | passed | failed |", "|---|---|---|"]
    for name in OPTIMIZERS:
        report = check_transformation(getattr(optax, name)(0.1), on_failure="report")
        passed = len(report.outcomes) - len(report.failures)
        failed = ", ".join(f"`{failure.check.name}`" for failure in report.failures)
        lines.append(f"| `optax.{name}` | {passed} | {failed or 'none'} |")
    return "\n".join(lines)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 2)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checks", action="store_true", help="print all checks in place of that")
    print(checks_table() if parser.parse_args().checks else optax_table())
