"""What the command line sets of an optimizer is in the recipe of its winner."""

import pytest

from optlab.cli import _main
from optlab.cli._optimizers import swept
from optlab.lab import tasks
from optlab.lab.tuning._recipe import FILL_IN, recipe
from optlab.lab.tuning._result import Interval, Winner

SETTINGS = ["--set", "b1=0.8", "--set", "nesterov=yes"]


def written(*arguments):
    command = ["tune", "--task", "valley", "--optimizers", "adamw", *arguments]
    options = _main._options(command)
    options.rate, options.schedule, options.optimizer = None, None, "adamw"
    score = Interval.of([1.0])
    winner = Winner(
        "adamw", "wsd", {"learning_rate": 0.1}, 60, 60, 0, score, test=None, tied=[], candidates=1
    )
    return recipe(winner, tasks.valley, swept(options))


@pytest.mark.parametrize("clip", [[], ["--clip", "2.5"]])
@pytest.mark.parametrize("settings", [[], SETTINGS])
def test_a_recipe_has_the_settings_and_the_clip_of_the_command(settings, clip):
    script = written(*settings, *clip)
    assert FILL_IN not in script
    own = "b1=0.8, nesterov=True, " if settings else ""
    assert f"optlab.adamw({own}learning_rate=learning_rate)\n" in script
    assert ("optlab.clip_by_global_norm(2.5)\n" in script) == bool(clip)
