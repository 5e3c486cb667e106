"""Groups of parameters on the command line."""

import json
import re

import pytest


def test_the_command_line_freezes_and_groups(run):
    options = ["--optimizer", "sgd", "--steps", "6", "--rate", "0.1", "--json"]
    options += [
        "--group",
        "hidden1/bias:lr_mult=1",
        "--freeze",
        "hidden1",
        "--group",
        "head:lr_mult=2",
        "--unfreeze",
        "hidden2:3",
    ]
    status, out, err = run("train", *options)
    assert status == 0
    assert re.search(r"hidden1/kernel +\(64, 128\) +- +- +- +- +- +yes +0\n", err)
    assert re.search(r"hidden2/bias .* until 3 ", err)
    rates = json.loads(out)["rates"]
    assert rates["head"] == pytest.approx([0.2] * 6)
    assert set(rates) == {"head", "hidden1_bias", "rest-from3"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--freeze", "hiden1"], "got 'hiden1', which matches none; did you mean hidden1"),
        (["--freeze", ".*"], "at least one parameter must be trained, got 6 that are all frozen"),
        (["--group", "head"], "argument --group: expected PATTERN:NAME=VALUE, got 'head'"),
        (
            ["--group", "head:lr_mult=-1"],
            "groups.group: lr_mult must be finite and >= 0, got lr_mult=-1",
        ),
        (["--group", "head:lr_mult=1,lr_mult=2"], "expected each hyperparameter once"),
        (["--group", "head:b3=1"], "the group 'head' must set hyperparameters of its optimizer"),
        (["--unfreeze", "head"], "argument --unfreeze: expected PATTERN:STEP, got 'head'"),
        (["--unfreeze", "head:x"], "expected a whole number >= 0, got 'x'"),
        (["--unfreeze", "head:5"], "STEP must be below the 5 updates of the run, got head:5"),
        (["--layer-decay", "2"], "argument --layer-decay: D must be in (0, 1], got '2'"),
    ],
)
def test_groups_that_do_not_fit_are_named_in_a_line(run, options, message):
    status, out, err = run("train", "--steps", "5", *options)
    assert status == 2
    assert out == ""
    assert message in err.splitlines()[-1]
