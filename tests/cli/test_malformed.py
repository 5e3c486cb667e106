"""Malformed command lines, of which `python tests/malformed_lines.py` prints a table."""

import pytest

from malformed_lines import CASES, answer


@pytest.mark.parametrize("line", CASES)
def test_a_malformed_command_line_is_answered_in_one_line(tmp_path, monkeypatch, line):
    monkeypatch.chdir(tmp_path)
    result = answer(line, CASES[line])
    assert result.problem.replace("a second or more", "") == "", result.err
    assert not list(tmp_path.iterdir())
