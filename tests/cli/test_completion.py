"""`optlab completion`, and what it completes."""

import argparse

import pytest

argcomplete = pytest.importorskip("argcomplete")

from optlab.cli._main import make_parser  # noqa: E402


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_lines_for_a_shell_are_printed(run, shell):
    status, out, err = run("completion", shell)
    assert (status, err) == (0, "")
    assert "optlab" in out


def test_an_unknown_shell_is_one_line(run):
    status, out, err = run("completion", "tcsh")
    assert (status, out) == (2, "")
    assert err == "optlab: unknown shell 'tcsh' (known: bash, zsh, fish)\n"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("optlab sw", ["sweep"]),
        ("optlab train --optimizer ada", ["adafactor", "adagrad", "adam", "adamw"]),
        ("optlab train --optimizer lion --set w", ["weight_decay=", "width="]),
        ("optlab sweep --task digits-cnn --sea", ["--search"]),
        ("optlab compare --optimizers adam,so", ["adam,soap"]),
        ("optlab bench --optimizers sgd lion,adag", ["lion,adagrad"]),
        ("optlab tune --optimizers adam,adam", ["adam,adamw"]),
        ("optlab train --task ", ["digits-cnn", "digits-mlp", "valley"]),
    ],
)
def test_names_are_completed(words, offered):
    *before, prefix = words.split(" ")
    finder = argcomplete.CompletionFinder(make_parser())
    completions = finder._get_completions(before, prefix, "", None)
    assert sorted(word.strip() for word in completions) == offered


def test_no_line_of_a_help_is_longer_than_the_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    (commands,) = (action for action in make_parser()._actions if isinstance(action.choices, dict))
    for parser in (make_parser(), *commands.choices.values()):
        lines = parser.format_help().splitlines()
        assert not [line for line in lines if len(line) > 80]


def test_every_option_has_a_help():
    (commands,) = (action for action in make_parser()._actions if isinstance(action.choices, dict))
    for parser in commands.choices.values():
        assert all(a.help for a in parser._actions if a.help is not argparse.SUPPRESS)
