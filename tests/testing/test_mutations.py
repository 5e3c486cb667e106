"""The table of deliberate faults in `mutations.py` fits the code."""

import ast
from collections import Counter

import pytest

from mutations import FAULTS, ROOT


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_text_of_a_fault_occurs_once_and_can_be_replaced(fault):
    text = (ROOT / "optlab" / fault.file).read_text()
    assert text.count(fault.original) == 1
    ast.parse(text.replace(fault.original, fault.faulty))


def test_faults_have_different_names():
    assert set(Counter(fault.name for fault in FAULTS).values()) == {1}


def test_the_likely_tests_exist():
    named = {word for fault in FAULTS for word in fault.likely.split() if "tests/" in word}
    paths = {word.strip("'").split("::")[0] for word in named}
    assert all((ROOT / path).exists() for path in paths)
