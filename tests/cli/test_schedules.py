"""`optlab plot-schedule`: expressions that are read and never run, the table, the picture."""

import re
import sys

import numpy as np
import optax
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from optlab import cli, plots, schedules
from optlab.cli._expressions import evaluate
from optlab.cli._plot_schedule import SCHEDULE_FUNCTIONS

FUNCTIONS = SCHEDULE_FUNCTIONS
COSINE = "warmup_cosine(peak_value=1e-3, warmup_steps=100, decay_steps=1000)"
CYCLE = "one_cycle(peak_value=0.1, total_steps=100)"


@pytest.fixture
def run(capfd, tmp_path, monkeypatch):
    """Run the command in an empty folder; return its status, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status = cli.main(["plot-schedule", *map(str, arguments)])
        return status, *capfd.readouterr()

    return run


def read(text):
    return evaluate(text, FUNCTIONS, "schedule")


def test_it_prints_the_knots_and_draws_a_picture(run, tmp_path):
    status, out, err = run(COSINE, "--steps", "1200")
    assert (status, err) == (0, "")
    assert out == (
        f"{COSINE}\n"
        "  step  value\n"
        "     0  0\n"
        "   100  0.001\n"
        "  1000  0\n"
        "  1200  0\n"
        "\n"
        "Wrote schedule.png\n"
    )
    picture = imread(tmp_path / "schedule.png")
    assert picture.shape[:2] > (600, 1200)
    assert 0.01 < (picture[..., :3] < 0.9).any(axis=-1).mean() < 0.5  # lines on a white ground


def test_it_draws_several_and_both_curves_of_a_cycle(run, tmp_path):
    out_file = tmp_path / "new folder" / "all.svg"
    status, out, _ = run(CYCLE, "constant(0.05)", "--steps", "65", "--out", out_file)
    assert status == 0
    assert out == (
        f"{CYCLE}\n"
        "  step  learning rate  momentum\n"
        "     0  0.004          0.95\n"
        "    30  0.1            0.85\n"
        "    65  0.050005       0.9\n"
        "  later knots, not shown: 100\n"
        "\n"
        "constant(0.05)\n"
        "  step  value\n"
        "     0  0.05\n"
        "    65  0.05\n"
        "\n"
        f"Wrote {out_file}\n"
    )
    assert out_file.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("text", "last"),
    [("cosine(0.1, 300)", 300), ("one_cycle(0.1, 77)", 77), ("constant(0.1)", 1000)],
)
def test_without_steps_it_shows_all_knots(run, text, last):
    _, out, _ = run(text)
    rows = re.findall(r"^ +(\S+)  ", out, re.MULTILINE)
    assert rows[-1] == str(last)


def test_a_picture_can_be_drawn_over(run, tmp_path):
    (tmp_path / "schedule.png").write_text("old")
    assert run("constant(0.1)")[0] == 0
    assert (tmp_path / "schedule.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "text",
    [
        "warmup(inverse_sqrt(1e-3), warmup_steps=100)",
        "join([constant(1e-3), linear(1e-3, 0, 50)], [50])",
        "join((constant(-1e-3), linear(+1e-3, 0, 50),), boundaries=[50])",
        "  cosine(\n    1e-3,\n    decay_steps=10,\n)\n",
        "scale(one_cycle(0.1, 100, momentum=(0.9, 0.8)).momentum, factor=0.5)",
        "wsd(1.0, 10, 70, 20, shape='sqrt')",
        "clamp(exponential(1.0, 0.1), min_value=None, max_value=1)",
        "optlab.schedules.cosine(1e-3, 10)",
        "schedules.cosine(1e-3, 10)",
    ],
)
def test_an_expression_means_what_it_means_in_python(text):
    names = {**FUNCTIONS, "optlab": sys.modules["optlab"], "schedules": schedules}
    assert repr(read(text)) == repr(eval(text.strip(), names))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_schedule_can_be_read_back_from_its_repr(name):
    samples = {
        "inverse_sqrt": ["inverse_sqrt(0.1, 10)"],
        "one_cycle": [f"one_cycle(0.1, 100).{field}" for field in ("learning_rate", "momentum")],
        "warmup": ["warmup(cosine(0.1, 10), 5)"],
        "join": ["join([constant(0.1), cosine(0.1, 10)], [5])"],
        "scale": ["scale(constant(0.1), -2)"],
        "swa_schedule": [
            "swa_schedule(cosine(0.1, 10), 0.05, 5, 3)",
            "swa_schedule(constant(0.1), 0.05, 5, form='paper')",
            "swa_schedule(constant(0.1), 0.05, 5, form='cyclic', cycle_steps=3, peak_value=0.1)",
        ],
        "clamp": ["clamp(constant(0.1), 0, 1)"],
        "multistep": ["multistep(0.1, 0.5, [3, 4])"],
        "triangular": ["triangular(0, 0.1, 10, form='halving')"],
    }
    usual = {
        "constant": "0.1",
        "step_decay": "0.1, 0.5, 30",
        "exponential": "0.1, 0.01",
        "linear": "0.1, 0, 10",
        "polynomial": "0.1, 0, 2, 10",
        "cosine": "0.1, 10",
        "warmup_cosine": "0.1, 5, 10",
        "wsd": "0.1, 1, 2, 3",
        "cosine_restarts": "0.1, 10, num_cycles=None",
    }
    for text in samples.get(name) or [f"{name}({usual[name]})"]:
        schedule = read(text)
        assert repr(read(repr(schedule))) == repr(schedule)


UNDERSTOOD = "only numbers, strings, lists and calls of schedules are understood, got "
TAKES_COSINE = "(it takes init_value, decay_steps, end_value=0.0)"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosine(1e-3, 100", "cannot read 'cosine(1e-3, 100': '(' was never closed"),
        ("cosine 1e-3", "cannot read 'cosine 1e-3': invalid syntax"),
        ("x = 1", "cannot read 'x = 1': "),
        ("", "cannot read '': "),
        ("constant(0.1\0)", "cannot read "),
        ("constant(" + "-" * 9000 + "1)", "cannot read 'constant(---------"),
        ("constant(" + "1" * 5000 + ")", "cannot read 'constant(111111111"),
        ("[" * 150 + "]" * 150, "expected the call of a schedule, got '[[[[[["),
        (
            "constant(" + "1" * 10_000 + ")",
            "an expression may have at most 10000 characters, got 1",
        ),
        ("1e-3", "expected the call of a schedule, got '1e-3'"),
        ("[constant(1)]", "expected the call of a schedule, got '[constant(1)]'"),
        ("cosine", "cosine needs its arguments: cosine(init_value, decay_steps, end_value=0.0)"),
        (
            "warmup_cosin(1e-3, 10, 100)",
            "unknown schedule 'warmup_cosin'; did you mean 'warmup_cosine', 'warmup'? (known: cons",
        ),
        ("zzz(1)", "unknown schedule 'zzz' (known: constant, step_decay, "),
        ("epochs_to_steps(1, 2, 3)", "unknown schedule 'epochs_to_steps'"),
        ("optax.cosine(1, 2)", "unknown schedule 'optax.cosine'; did you mean 'cosine'"),
        ("warmup(cosin(1, 2), 3)", "unknown schedule 'cosin'; did you mean 'cosine'"),
        (
            "cosine(1e-3, decay_step=10)",
            f"cosine: unknown argument 'decay_step'; did you mean 'decay_steps'? {TAKES_COSINE}",
        ),
        ("cosine(1e-3)", f"cosine: missing argument 'decay_steps' {TAKES_COSINE}"),
        ("cosine()", f"cosine: missing arguments 'init_value', 'decay_steps' {TAKES_COSINE}"),
        ("cosine(1, 2, 3, 4)", f"cosine: 4 arguments are too many {TAKES_COSINE}"),
        ("cosine(1, 2, init_value=3)", f"cosine: init_value is given twice {TAKES_COSINE}"),
        ("cosine(init_value=1, init_value=2)", "cosine: init_value is given twice"),
        ("cosine(**{'init_value': 1})", "cosine: arguments must be written out, got **\"{'init_v"),
        ("cosine(1e-3, 0)", "cosine: decay_steps must be an integer >= 1, got decay_steps=0"),
        ("cosine(1e-3, 1.5)", "cosine: decay_steps must be an integer >= 1, got decay_steps=1.5"),
        ("constant(1e999)", "constant: value must be finite, got value=inf"),
        ("constant(True)", "constant: value must be a number, got value="),
        ("warmup(0.1, 10)", "warmup: schedule must be a function of the step, got 0.1"),
        ("multistep(1, 0.1, 30)", "multistep: milestones must be a sequence of steps, got"),
        (
            "wsd(1, 1, 1, 1, shape=[1])",
            "wsd: shape must be one of linear, cosine, sqrt, got shape=[1]",
        ),
        ("cosine(1e-3, 9999999999)", "cosine: decay_steps must be below 2**31, where int32 ends"),
        ("constant(1 + 1)", UNDERSTOOD + "'1 + 1'"),
        ("constant(2**99999999)", UNDERSTOOD + "'2**99999999'"),
        ("constant(nan)", UNDERSTOOD + "'nan'"),
        ("constant(--1)", UNDERSTOOD + "'--1'"),
        ("constant(-'1')", UNDERSTOOD + "\"-'1'\""),
        ("constant(-True)", UNDERSTOOD + "'-True'"),
        ("constant(1j)", UNDERSTOOD + "'1j'"),
        ("constant(b'1')", UNDERSTOOD + "\"b'1'\""),
        ("constant(...)", UNDERSTOOD + "'...'"),
        ("constant({1: 2})", UNDERSTOOD + "'{1: 2}'"),
        ("constant(f'{1}')", UNDERSTOOD + "\"f'{1}'\""),
        ("constant(lambda: 1)", UNDERSTOOD + "'lambda: 1'"),
        ("constant([x for x in (1,)])", UNDERSTOOD + "'[x for x in (1,)]'"),
        ("constant(*[1])", UNDERSTOOD + "'*[1]'"),
        ("constant((y := 1))", UNDERSTOOD + "'y := 1'"),
        ("join([constant(1)][0], [1])", UNDERSTOOD + "'[constant(1)][0]'"),
        ("(lambda: 1)()", UNDERSTOOD + "'lambda: 1'"),
        ("constant(1)(2)", UNDERSTOOD + "'constant(1)'"),
        ("constant(1).knots", "'constant(1)' has no 'knots'"),
        ("constant(1).__class__", "'constant(1)' has no '__class__'"),
        (
            "one_cycle(1, 2).momenta",
            "'one_cycle(1, 2)' has no 'momenta'; it has learning_rate, momentum",
        ),
        ("one_cycle(1, 2).momentum.knots", UNDERSTOOD + "'one_cycle(1, 2).momentum.knots'"),
        ("scale(constant(1e38), 1e3)", "plot_schedules: every value must be finite, got inf at st"),
    ],
)
def test_a_wrong_expression_is_one_line_and_status_2(run, tmp_path, text, message):
    status, out, err = run(text)
    assert (status, out) == (2, "")
    assert err.startswith(f"optlab: {message}")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "text",
    [
        "__import__('pathlib').Path('made').touch()",
        "constant(open('made', 'w'))",
        "constant.__globals__['np'].save('made', 1)",
        "constant(value=[open][0]('made', 'w'))",
        "constant(f\"{open('made', 'w')}\")",
    ],
)
def test_an_expression_is_never_run(run, tmp_path, text):
    status, out, err = run(text)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert not list(tmp_path.iterdir())


def test_a_number_too_large_for_the_count_is_one_line_and_status_2(run):
    status, out, err = run("wsd(1, 2147483647, 2147483647, 1)", "--steps", "100")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(
        "optlab: wsd: warmup_steps + stable_steps + decay_steps must be below 2**31"
    )


def test_zero_has_no_sign_in_the_table(run):
    _, out, _ = run("linear(-1e-3, -0.0, 10)")
    assert "    10  0\n" in out


def test_a_value_that_is_not_finite_is_told_with_its_step(run, tmp_path):
    _, _, err = run("scale(linear(0, 1e38, 100), 5)", "--steps", "200")
    assert "every value must be finite, got inf at step 69 of scale(linear(0, 1e38, 100), 5)" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "argument --steps: expected a whole number >= 1, got '0'"),
        (["--steps", "-5"], "argument --steps: expected"),
        (["--steps", "1e3"], "argument --steps: expected a whole number >= 1, got '1e3'"),
        (["--steps", "9999999999"], "argument --steps: expected a whole number below 2**31"),
        (["--out", "plot.gif"], "argument --out: expected a file in .png, .svg, .pdf, got 'plot.g"),
        (["--out", "plot"], "argument --out: expected a file in .png, .svg, .pdf, got 'plot'"),
    ],
)
def test_a_wrong_option_is_one_line_and_status_2(run, tmp_path, arguments, message):
    status, out, err = run("constant(0.1)", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"optlab: {message}")
    assert not list(tmp_path.iterdir())


def test_no_schedule_at_all_is_one_line_and_status_2(run):
    status, out, err = run()
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "required: SCHEDULE" in err


def test_a_file_that_cannot_be_written_is_told_before_drawing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "plot_schedules", lambda *args, **options: pytest.fail("drawn"))
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    for out_file in (tmp_path / "folder.png", tmp_path / "file" / "plot.png"):
        status, out, err = run("constant(0.1)", "--out", out_file)
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert err.startswith("optlab: cannot write to ")
        assert err.endswith("; choose another file with --out\n")


def test_without_matplotlib_the_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = run("constant(0.1)")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("optlab: plot-schedule: the module matplotlib is required")


def test_help_lists_every_schedule(capsys):
    with pytest.raises(SystemExit):
        cli.main(["plot-schedule", "--help"])
    text = capsys.readouterr().out
    assert all(f"  {name}(" in text for name in FUNCTIONS)
    assert "  cosine(init_value, decay_steps, end_value=0.0)\n" in text


def test_a_schedule_is_drawn_at_every_step_with_its_knots_marked():
    schedule = schedules.multistep(1.0, 0.5, [3, 7])
    ax = plots.plot_schedules({"drops": schedule}, steps=10)
    (line,) = ax.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(11))
    np.testing.assert_array_equal(line.get_ydata(), [1] * 3 + [0.5] * 4 + [0.25] * 4)
    assert line.get_markevery() == [0, 3, 7]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["drops"]


def test_a_long_schedule_is_drawn_from_samples_and_its_knots():
    steps = 2**31 - 1
    ax = plots.plot_schedules({"drop": schedules.multistep(1.0, 0.5, [12_345_679])}, steps=steps)
    x, y = ax.lines[0].get_data()
    assert len(x) < 3000
    assert (x[0], x[-1]) == (0, steps)
    at = np.searchsorted(x, 12_345_679)
    assert list(x[at - 1 : at + 1]) == [12_345_678, 12_345_679]
    assert list(y[at - 1 : at + 1]) == [1, 0.5]


def test_the_momentum_of_a_cycle_has_a_panel_below_with_its_own_scale():
    figure = Figure(layout="constrained")
    left, right = figure.subplots(1, 2)
    cycles = {"a": schedules.one_cycle(0.1, 101), "b": schedules.constant(0.05)}
    assert plots.plot_schedules(cycles, steps=120, ax=left) is left
    below = figure.axes[-1]
    figure.draw_without_rendering()
    upper, lower, other = (ax.get_position() for ax in (left, below, right))
    assert lower.y1 < upper.y0 < upper.y1 <= 1
    assert (lower.x0, lower.x1) == pytest.approx((upper.x0, upper.x1))
    assert other.y0 < upper.y0  # which kept its whole height
    assert [len(ax.lines) for ax in (left, below, right)] == [2, 1, 0]
    x, y = below.lines[0].get_data()
    assert y[x == 0.3 * 101] == np.float32(0.85)  # the knot, which is not a whole step
    assert (left.get_ylabel(), below.get_ylabel()) == ("learning rate", "momentum")
    with pytest.raises(ValueError, match="ax must be a subplot, which can make room for"):
        plots.plot_schedules(cycles, steps=120, ax=Figure().add_axes((0, 0, 1, 1)))


def test_optax_schedules_are_drawn_as_well():
    drawn = {"cosine": optax.cosine_decay_schedule(0.1, 10), "flat": optax.constant_schedule(0.1)}
    ax = plots.plot_schedules(drawn, steps=10)
    assert [line.get_ydata()[0] for line in ax.lines] == [np.float32(0.1)] * 2


@pytest.mark.parametrize(
    ("drawn", "steps", "message"),
    [
        ({}, 10, "schedules must hold at least one, got none"),
        ({"a": schedules.constant(1.0)}, 0, "steps must be an integer >= 1, got steps=0"),
        ({"a": lambda step: 1.0 / (step - 5)}, 10, "every value must be finite, got inf at step 5"),
    ],
)
def test_what_cannot_be_drawn_is_told(drawn, steps, message):
    with pytest.raises(ValueError, match=f"^plot_schedules: {message}"):
        plots.plot_schedules(drawn, steps=steps)
