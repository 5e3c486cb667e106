"""`optlab lr-range`: raise the learning rate over a short run and suggest where to train."""

import argparse
import sys

from optlab.cli._errors import value_errors
from optlab.cli._optimizers import clipped
from optlab.cli._options import seeds_of
from optlab.cli._output import check_writable_file, require, write_errors
from optlab.cli._task_errors import task_errors
from optlab.cli._tasks import make_task
from optlab.lab import lr_range_test


def run(options: argparse.Namespace) -> None:
    """Test the range, print the suggestions or the JSON, draw the curves."""
    require("lr-range", "matplotlib", "rich")
    check_writable_file(options.out)
    task = make_task(options)
    names = ("min_lr", "max_lr", "steps", "mode", "confirm", "results")
    with task_errors(options.task), value_errors():
        result = lr_range_test(
            task,
            clipped(options, options.optimizer),
            seeds=seeds_of(options),
            progress=sys.stderr.isatty(),
            **{name: getattr(options, name) for name in names},
        )
    label = f"{options.optimizer} on {task.name}"
    text = result.to_json(optimizer=options.optimizer)
    if options.json:
        print(text)
    else:
        print(result.title(label), result.table(), sep="\n\n")
    numbers = options.out.with_suffix(".json")
    with write_errors(options.out, "file"):
        numbers.write_text(text + "\n", encoding="utf-8")
        result.plot(label=label).figure.savefig(options.out)
    if not options.json:
        print("", f"Wrote {numbers}, {options.out.name}", sep="\n")
