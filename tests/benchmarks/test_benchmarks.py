"""The benchmark compares the same arithmetic, counts bytes right, and reports what it took."""

import importlib.util
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import by_hand, precision, shapes, timing, wrappers
from benchmarks.__main__ import main
from benchmarks.cases import CASES, RULES
from benchmarks.contenders import JAX_PEERS, NATIVE_PEERS, TORCH_PEERS, JaxStep, contender
from benchmarks.options import parse
from benchmarks.report import in_markdown, plain
from benchmarks.roofline import CpuRoofline, plan
from benchmarks.settings import MAX_NORM

pytestmark = pytest.mark.slow

cases = pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))


@pytest.fixture(scope="module")
def tiny():
    """Parameters, the gradients that all share, and the same as NumPy's arrays."""
    params, gradients = shapes.start(shapes.shapes_of("tiny"))
    return params, {name: jnp.array(g) for name, g in gradients.items()}


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_networks_have_their_published_numbers_of_leaves_and_parameters(name):
    made = shapes.shapes_of(name)
    assert (len(made), sum(map(math.prod, made.values()))) == shapes.COUNTS[name]


@cases
def test_optlab_optax_and_the_hand_written_step_agree(case, tiny):
    contenders = [contender(peer, case, *tiny, donate=True) for peer in JAX_PEERS]
    shares = timing.check_agreement(contenders, list(tiny[0].values()), tiny[1])
    assert set(shares) == set(JAX_PEERS)


def test_steps_in_loops_agree_with_optax(tiny):
    case, peers = CASES["clip-adamw-average"], ("optax", *NATIVE_PEERS)
    contenders = [contender(peer, case, *tiny, donate=True) for peer in peers]
    shares = timing.check_agreement(contenders, list(tiny[0].values()), tiny[1])
    assert set(shares) == set(peers)


def test_wrappers_are_measured_in_both_paths(capsys):
    wrappers.main(["--shapes", "tiny", "--rounds", "1", "--wrappers", "accumulate"])
    lines = capsys.readouterr().out.splitlines()
    paths = [line.split()[1] for line in lines if line.startswith("accumulate")]
    assert paths == ["XLA", "loops"]


class Idler:
    """A contender that makes no step."""

    name = "idler"
    norm_error = 0.0

    def __init__(self, like):
        self._results = like.results()

    def set_gradients(self, gradients):
        """Do nothing."""

    def advance(self, steps):
        """Do nothing."""

    def results(self):
        return self._results


def _check_with_idler(case, params, gradients, dtype, **of_rule):
    moving = JaxStep("moving", case.functions("optax", **of_rule), params, gradients, False, dtype)
    start = [p.astype(dtype) for p in params.values()]
    timing.check_agreement([moving, Idler(moving)], start, gradients, float(jnp.finfo(dtype).eps))


@cases
def test_a_contender_that_does_nothing_is_refused(case, tiny):
    with pytest.raises(timing.Disagreement, match=r"^idler: "):
        _check_with_idler(case, *tiny, jnp.float32)


@pytest.mark.parametrize("name", precision.MEASURED)
def test_a_contender_that_does_nothing_is_refused_in_bfloat16(name, tiny):
    gradients = {name: g.astype(jnp.bfloat16) for name, g in tiny[1].items()}
    with pytest.raises(timing.Disagreement, match=r"^idler: "):
        _check_with_idler(CASES[name], tiny[0], gradients, jnp.bfloat16, mu_dtype=jnp.float32)


def test_movements_too_small_to_be_compared_are_refused(tiny):
    params = {name: np.full_like(p, 1e3) for name, p in tiny[0].items()}
    with pytest.raises(timing.Disagreement, match=r"^moving: params must move enough"):
        _check_with_idler(CASES["sgd"], params, tiny[1], jnp.float32)


def test_gradients_are_clipped_on_all_networks():
    fewest = min(params for _, params in shapes.COUNTS.values())
    assert math.sqrt(fewest) * shapes.SCALE > 2 * MAX_NORM


def test_a_contender_that_computes_something_else_is_refused(tiny):
    contenders = [contender("by-hand", CASES[name], *tiny, donate=True) for name in ("sgd", "adam")]
    with pytest.raises(timing.Disagreement, match=r"^by-hand: params must be within .* got "):
        timing.check_agreement(contenders, list(tiny[0].values()), tiny[1])


@cases
def test_the_roofline_reads_and_writes_as_much_as_the_case(case):
    operations = plan(case.reads, case.writes)
    assert (operations.reads, operations.writes) == (case.reads, case.writes)
    assert min(operations) >= 0


@cases
def test_reads_and_writes_are_those_of_the_arrays_in_the_hand_written_state(case, tiny):
    state = contender("by-hand", case, *tiny, donate=False)
    arrays = round(state.state_bytes() / sum(p.nbytes for p in tiny[0].values()))
    assert case.writes == 1 + arrays
    assert case.reads == 2 + arrays + case.clip


def test_every_rule_is_written_by_hand():
    assert list(by_hand.RULES) == list(RULES)


def test_the_roofline_touches_every_element_in_every_step():
    size = 5
    line = CpuRoofline(reads=5, writes=3, size=size, threads=2)
    line.advance(3)
    gradients, params, *state = (
        np.concatenate([block for blocks in part for block in blocks])
        for part in zip(*line._parts, strict=True)
    )
    assert np.array_equal(gradients, np.ones(size))
    assert np.array_equal(params, np.full(size, 4))
    assert np.array_equal(state, np.full((2, size), -1))


def test_ratios_are_formed_within_rounds():
    # Rounds differ a hundredfold, and the second is twice as fast in each.
    seconds = {"one": np.array([1.0, 100.0, 4.0]), "other": np.array([0.5, 50.0, 2.0])}
    assert set(timing.ratio(seconds, "one", "other").values()) == {2.0}
    shuffled = seconds | {"other": np.array([2.0, 0.5, 50.0])}
    assert timing.ratio(shuffled, "one", "other") == timing.quantiles(np.array([0.5, 200.0, 0.08]))
    assert timing.ratio(seconds, "by-hand", "other") is None


class Sleeper:
    """A contender of known length that notes what it does."""

    def __init__(self, name, log):
        self.name, self.log = name, log

    def advance(self, steps):
        self.log.append(self.name)

    def wait(self):
        """Do nothing."""


def test_every_contender_has_one_sample_a_round_in_changing_order(monkeypatch):
    monkeypatch.setattr(timing, "MIN_SAMPLE", 1e-9)
    log = []
    samples = timing.measure([Sleeper(name, log) for name in "abc"], rounds=20, warm_ups=2)
    rounds = [tuple(log[i : i + 6 : 2]) for i in range(0, len(log), 6)]
    assert log[::2] == log[1::2]  # untimed steps, then the sample
    assert len(rounds) == 22
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 3
    assert {name: len(seconds) for name, seconds in samples.seconds.items()} == dict.fromkeys(
        "abc", 20
    )


def test_rounds_end_when_the_time_is_over_but_for_the_fewest(monkeypatch):
    monkeypatch.setattr(timing, "MIN_SAMPLE", 1e-9)
    samples = timing.measure([Sleeper("a", [])], rounds=20, warm_ups=9, until=-math.inf)
    assert len(samples.seconds["a"]) == timing.LEAST_ROUNDS


def test_a_part_may_use_what_the_one_before_it_left():
    clock = timing.Clock(1000.0)
    clock.begin(0.5)
    assert not clock.is_over()
    first = clock.part(1)
    clock.begin(0.75)
    assert math.isclose(clock.part(1) - first, 250.0, rel_tol=1e-3)
    clock.begin(0.0)
    assert not clock.is_over()  # the first case is measured in any case
    assert clock.is_over()
    assert clock.was_over
    assert not timing.Clock().is_over()


def test_only_a_run_without_any_choice_has_its_time_limited():
    assert parse([]).clock.is_limited
    assert not parse(["step"]).clock.is_limited
    assert not parse(["--rounds", "3"]).clock.is_limited
    assert parse(["step", "--minutes", "3"]).clock.is_limited
    assert parse([]).cases[0].name == "adamw"


def test_tables_are_aligned_or_in_markdown():
    table = [["case", "ms"], ["sgd", "1.5"], ["adamw", "12.5"]]
    assert plain(table) == "case     ms\nsgd     1.5\nadamw  12.5"
    assert in_markdown(table).splitlines()[1] == "| --- | ---: |"


def test_a_quick_run_prints_and_writes_all_parts(tmp_path, capsys):
    arguments = ["--quick", "--cases", "sgd", "--peers", "optlab", "roofline", "--donate", "yes"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "these figures say nothing" in out
    assert "A step on tiny (3 leaves, 17,168 parameters), donated, 3 rounds" in out
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["quick"]
    results = written["results"]
    assert {r["part"] for r in results} == {
        "step",
        "compile",
        "memory",
        "types",
        "matrices",
        "small",
    }
    steps = [r for r in results if r["part"] == "step"]
    assert [r["contender"] for r in steps] == ["optax", "optlab", "roofline"]
    assert all(r["rounds"] == 3 and r["donated"] for r in steps)
    assert steps[0]["speed"]["50%"] == 1
    # Of three rounds, the median of the reciprocals is the reciprocal of the median.
    assert math.isclose(steps[0]["roofline"]["50%"], 1 / steps[2]["speed"]["50%"])
    assert "speed / by-hand's" not in out
    assert steps[0]["speed_to_by_hand"] is None
    matrices = {r["contender"]: r for r in results if r["part"] == "matrices"}
    assert matrices["muon, optax"]["speed"]["50%"] == 1
    assert matrices["muon"]["state_bytes"] < matrices["adamw"]["state_bytes"]
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "compile.png",
        "step-tiny-donated.png",
    }


def test_steps_are_compared_with_the_hand_written_one_and_all_seconds_are_kept(tmp_path, capsys):
    arguments = ["step", "--quick", "--cases", "sgd", "--peers", "optlab", "by-hand"]
    assert main([*arguments, "--donate", "yes", "--out", str(tmp_path)]) == 0
    assert "speed / by-hand's" in capsys.readouterr().out
    steps = json.loads((tmp_path / "results.json").read_text())["results"]
    seconds = {r["contender"]: np.array(r["seconds"]) for r in steps}
    assert {name: len(taken) for name, taken in seconds.items()} == dict.fromkeys(JAX_PEERS, 3)
    for r in steps:
        assert r["speed_to_by_hand"] == timing.ratio(seconds, "by-hand", r["contender"])
    assert main([*arguments, "--donate", "yes", "--markdown"]) == 0
    assert "| optlab / by-hand |" in capsys.readouterr().out


def test_the_base_alone_has_no_picture_of_speeds(tmp_path):
    arguments = ["step", "--quick", "--cases", "sgd", "--peers", "optax", "--donate", "yes"]
    assert main([*arguments, "--out", str(tmp_path)]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["stepp"], ["step", "compile", "memory", "types"]),
        (["--cases", "adamax"], CASES),
        (["--shapes", "bert"], shapes.SHAPES),
        (["--peers", "keras"], JAX_PEERS),
        (["--donate", "maybe"], ["yes", "no", "both"]),
        (["--rounds", "0"], ["an integer of at least 1"]),
        (["--minutes", "nan"], ["a number > 0"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_arguments_are_answered_in_one_line(arguments, names, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert all(name in error for name in names)


@pytest.mark.parametrize("beneath", ["", "folder"])
def test_a_folder_that_cannot_be_made_is_answered_in_one_line(beneath, tmp_path, capsys):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SystemExit) as stopped:
        main(["--quick", "--out", str(file / beneath)])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("python -m benchmarks: argument --out: cannot make the folder ")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("installed", "donate", "reason"),
    [(False, "both", "is not installed"), (True, "no", "--donate must not be no")],
)
@pytest.mark.parametrize("peer", TORCH_PEERS)
def test_pytorch_asked_for_by_name_is_not_left_out(
    installed, donate, reason, peer, monkeypatch, capsys
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: installed or None)
    with pytest.raises(SystemExit) as stopped:
        main(["--quick", "--donate", donate, "--peers", "optlab", peer])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"python -m benchmarks: argument --peers: {peer} ")
    assert error.endswith(f"{reason}\n")


def test_a_disagreement_costs_its_case_only(monkeypatch, tmp_path, capsys):
    def mistaken(params, state, gradients):
        return jax.tree.map(lambda p, g: p + g, params, gradients), state

    monkeypatch.setitem(by_hand.RULES, "sgd", (by_hand.no_state, mistaken))
    arguments = ["step", "--quick", "--cases", "sgd", "momentum", "--peers", "by-hand"]
    assert main([*arguments, "--donate", "yes", "--out", str(tmp_path)]) == 1
    assert "donated, 3 rounds: sgd: by-hand: params must be within " in capsys.readouterr().err
    written = json.loads((tmp_path / "results.json").read_text())
    assert {r["case"] for r in written["results"]} == {"momentum"}
    assert len(written["disagreements"]) == 1


def test_an_error_passes_after_what_is_finished_is_written(monkeypatch, tmp_path, capsys):
    def failing(*arguments):
        raise MemoryError

    monkeypatch.setattr("benchmarks.memory._account", failing)
    arguments = ["compile", "memory", "--quick", "--peers", "optax", "--out", str(tmp_path)]
    with pytest.raises(MemoryError):
        main(arguments)
    assert "Time to a first step" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["part"] == "compile"


def test_an_interruption_prints_and_writes_what_is_finished(monkeypatch, tmp_path, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.memory._account", interrupted)
    arguments = ["compile", "memory", "--quick", "--peers", "optax", "--out", str(tmp_path)]
    assert main(arguments) == 130
    assert "Time to a first step" in capsys.readouterr().out
    assert json.loads((tmp_path / "results.json").read_text())["results"][0]["part"] == "compile"
