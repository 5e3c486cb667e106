"""`optlab tune`."""

import json

import pytest


def test_a_task_is_tuned_into_a_folder_and_the_same_command_reads_it_again(run):
    command = ("tune", "--task", "blobs:task", "--budget", "60 trials", "--quick", "--out", "out")
    status, out, err = run(*command)
    assert status == 0
    assert out.startswith("blobs: tuning, 60 trials of 40 updates")
    assert "Train with adamw(learning_rate=" in out
    assert out.endswith("Wrote report.html, report.md, recipe.py in out\n")
    begun = [line for line in err.splitlines() if line.endswith("?")]
    assert len(begun) == 7
    again, out, _ = run(*command, "--json")
    assert again == 0
    document = json.loads(out)
    assert document["winner"]["optimizer"] == "adamw"
    assert len(document["steps"]) == 7


def test_a_step_that_fails_ends_with_its_advice_and_status_three(run):
    status, out, _ = run("tune", "--task", "blobs:of_summed_losses", "--budget", "40 trials")
    assert status == 3
    assert "1. initial loss: failed." in out
    assert "Do: Suspect the loss is a sum over the batch" in out


@pytest.mark.slow
def test_an_optimizer_of_ones_own_is_tuned(run):
    command = ("tune", "--task", "blobs:task", "--budget", "60 trials", "--quick")
    status, out, _ = run(*command, "--optimizers", "blobs:rule", "--out", "own")
    assert status == 0
    assert "Train with blobs:rule(learning_rate=" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "30 updates"], "budget must allow the checks and one run of 40"),
        (["--space", "width=1:9:int"], "space must name arguments of the optimizers"),
        (["--optimizers", "blobs:rull"], "did you mean 'rule'"),
    ],
)
def test_what_the_task_shows_to_be_wrong_is_one_line(run, arguments, message):
    status, out, err = run("tune", "--task", "blobs:task", "--quick", *arguments)
    assert (status, out) == (2, "")
    assert message in err.splitlines()[-1]
