"""The examples run, warn of nothing, and print numbers that make sense."""

import functools
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
CHAIN_IN_NNX = "01_chain_in_flax_nnx.py"
LINEN_TRAIN_STATE = "02_linen_train_state.py"
ONE_CYCLE = "03_one_cycle.py"
CNN = "04_cnn_start_to_finish.py"
TRANSFORMER = "05_character_transformer.py"
OWN_RULE = "06_write_a_rule.py"
MUON = "07_muon_transformer.py"
FINE_TUNE = "08_fine_tune.py"
AVERAGES = "09_averages_and_ensembles.py"
BATCH_SIZE = "10_batch_size.py"
WIDTH = "11_width_transfer.py"
SHARDED = "12_sharded_training.py"

# Of ten classes chance is 0.1, logistic regression reaches 0.97 and these networks 0.98, with a
# standard error of 0.007 from 450 test images: below 0.95 something is broken.
ACCURACY_FLOOR = 0.95


@functools.cache
def ran(example, *arguments):
    """Run an example as a user would, warnings being errors; return its output and its files."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-W", "error", EXAMPLES / example, *arguments],
            cwd=folder,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout, {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def printed(example):
    """Return what an example prints."""
    return ran(example)[0]


def numbers(pattern, text):
    """Return the numbers of every match of a pattern, one tuple a match."""
    matches = re.finditer(pattern, text, re.MULTILINE)
    return [tuple(map(float, match.groups())) for match in matches]


def test_every_example_is_tested_here():
    tested = {CHAIN_IN_NNX, LINEN_TRAIN_STATE, ONE_CYCLE, CNN, TRANSFORMER, OWN_RULE, MUON}
    tested |= {FINE_TUNE, AVERAGES, BATCH_SIZE, WIDTH, SHARDED}
    assert {path.name for path in EXAMPLES.glob("*.py")} == tested


def test_chain_in_nnx_learns_at_the_scheduled_rates():
    text = printed(CHAIN_IN_NNX)
    rows = numbers(r"update +(\d+): learning rate (\S+), loss (\S+)\n", text)
    rates = {int(update): rate for update, rate, _ in rows}
    # Update n uses the schedule's value at n − 1: 0, 19/40 and 39/40 of the peak 0.005 in the
    # warm-up, and the floor, to the six digits printed, in the last.
    assert [rates[n] for n in (1, 20, 40, 400)] == [0, 0.002375, 0.004875, 0.0005]
    losses = [loss for _, _, loss in rows]
    # Guessing costs log 10 = 2.30, give or take what the random weights add.
    assert 2 < losses[0] < 3
    assert losses[-1] < 0.05
    accuracies = dict(re.findall(r"test accuracy of the (\w+) parameters: (\S+)\n", text))
    assert accuracies.keys() == {"last", "averaged"}
    assert min(map(float, accuracies.values())) > ACCURACY_FLOOR


def test_linen_train_state_cuts_the_rate_where_the_loss_stalls_and_compiles_once():
    text = printed(LINEN_TRAIN_STATE)
    assert text.count("compiling") == 1
    rows = numbers(r"epoch +\d+: learning rate (\S+), loss (\S+)\n", text)
    rates, losses = zip(*rows, strict=True)
    assert rates[:2] == (0.3, 0.3)
    stalled = [losses[i] > 0.9 * min(losses[:i]) for i in range(1, len(losses) - 1)]
    assert any(stalled)
    for cut, before, after in zip(stalled, rates[1:-1], rates[2:], strict=True):
        # Both are rounded to the four digits printed.
        assert after == pytest.approx(0.3 * before if cut else before, abs=1e-4)
    assert losses[-1] < 0.1
    ((accuracy,),) = numbers(r"test accuracy: (\S+)\n", text)
    assert accuracy > ACCURACY_FLOOR


@pytest.mark.slow
def test_one_cycle_is_compared_with_a_constant_rate():
    text, files = ran(ONE_CYCLE)
    assert files.keys() == {"one_cycle.png"}
    assert files["one_cycle.png"].startswith(b"\x89PNG")
    rows = numbers(r"^ *(\d+)" + 6 * r" +([\d.]+)" + "$", text)
    updates, cycle_rates, b1s, cycle_losses, rates, fixed_b1s, losses = zip(*rows, strict=True)
    # Update 60 is the nearest to the peak, 0.3·199 others being 59.7; the last is the 200th.
    assert (updates[2], max(cycle_rates), min(b1s)) == (60, cycle_rates[2], b1s[2])
    assert (updates[-1], b1s[-1]) == (200, 0.95)
    assert cycle_rates[-1] == pytest.approx(cycle_rates[2] / 1e4, abs=1e-6)
    assert len(set(rates)) == 1
    assert set(fixed_b1s) == {0.9}
    assert max(cycle_losses[-1], losses[-1]) < 0.2
    table = dict(
        re.findall(r"^(one cycle|constant) .* (\S+) ± \S+  +≥? ?\S+  +0 of 12$", text, re.MULTILINE)
    )
    assert table.keys() == {"one cycle", "constant"}
    # Two networks of 200 updates: below 0.93, of 360 images and 3 seeds, something is broken.
    assert min(map(float, table.values())) > 0.93
    assert re.search(
        r"^(one cycle|constant) at \S+ leads: .*(tied with|no other comes)", text, re.MULTILINE
    )


def steps_of(text, count):
    """Return what an example prints before and under each of its numbered headings."""
    return re.split(r"^\d\. .*\n", text, maxsplit=count, flags=re.MULTILINE)


@pytest.mark.slow
def test_cnn_goes_from_its_first_loss_to_a_test_accuracy_seen_once():
    text, files = ran(CNN)
    assert files.keys() == {"range_test.png", "sweep.png", "history.png"}
    assert all(file.startswith(b"\x89PNG") for file in files.values())
    _, first_loss, by_heart, tested, coarse, finer, long_run, ending = steps_of(text, 7)
    assert first_loss.startswith("Passed: ")
    assert by_heart.startswith("Passed: ")
    ends = dict(re.findall(r"^suggested (min|max) +(\S+)", tested, re.MULTILINE))
    lowest, highest = float(ends["min"]), float(ends["max"])
    row = r"^\d+ +(\S+) +(\S+) +(0|0\.3) +(0\.\d+) +\S+ +100 +complete$"
    rates, *_, coarse_accuracies = zip(*numbers(row, coarse), strict=True)
    # As printed, to three digits.
    assert 0.99 * lowest < min(rates) <= max(rates) < 1.01 * 2 * highest
    row = r"^\d+ +(\S+) +(\S+) +(0\.\d+) ± \S+ +\S+ +200 +complete$"
    finer_rates, _, finer_accuracies = zip(*numbers(row, finer), strict=True)
    assert min(rates) <= min(finer_rates)
    # Longer runs with the better values do better, from two seeds.
    assert max(finer_accuracies) > max(coarse_accuracies)
    rows = numbers(r"^ *(\d+)" + 4 * r" +([\d.]+)" + "$", long_run)
    updates, train_losses, losses, train_accuracies, accuracies = zip(*rows, strict=True)
    assert updates[0] == 0
    # Guessing costs log 10 = 2.30, give or take what the random weights add.
    assert 2 < losses[0] < 3
    assert train_losses[-1] < 0.05
    assert train_accuracies[-1] > 0.99
    # Of 600 training images, these networks learn to tell 0.97 of others, with a standard error of
    # 0.007 from 599 of them: below 0.94 something is broken.
    assert max(accuracies) > 0.94
    ((accuracy,),) = numbers(r"^test accuracy: (\S+)$", text)
    assert accuracy > 0.94
    assert re.match(r"Nothing stands out\.|[A-Z].*: ", ending)


@pytest.mark.slow
def test_transformer_learns_more_than_how_often_characters_occur():
    text, files = ran(TRANSFORMER)
    assert not files
    heading, checks, tested, found, long_run, ending = steps_of(text, 5)
    ((unigram,),) = numbers(r"different: (\S+) bits for each$", heading)
    assert checks.count("Passed: ") == 2
    ((highest,),) = numbers(r"^suggested max +(\S+)", tested)
    # Adam on small transformers: a few thousandths.
    assert 1e-3 < highest < 3e-2
    row = r"^\d+ +(\S+) +(\S+) +(\S+) +(\S+) +100 +complete$"
    rates, _, _, trial_losses = zip(*numbers(row, found), strict=True)
    assert max(rates) < 1.01 * 3 * highest
    assert list(trial_losses) == sorted(trial_losses)
    rows = numbers(r"^ *(\d+) +([\d.]+) +([\d.]+) +([\d.]+)%$", long_run)
    updates, train, validation, clipped = zip(*rows, strict=True)
    assert (updates[0], updates[-1]) == (200, 1200)
    # Text such as this takes near 2 bits a character from so small a model; below 1 it would see
    # what it is to predict.
    assert 1 < train[-1] < train[0] < unigram
    assert 1 < validation[-1] < 0.55 * unigram
    # Counted in updates, a share that ends small began larger.
    assert 0 < clipped[-1] <= clipped[0] < 100
    ((bits, without),) = numbers(r"^test: (\S+) bits a character, (\S+) without a model$", ending)
    assert without == unigram
    assert 1 < bits < 0.55 * unigram
    written = ending.split("':\n\n")[-1].removesuffix("\n")
    assert len(written) == 200
    # In the text it is 0.18, 0.12 of them outside of indentation.
    assert 0.05 < written.count(" ") / 200 < 0.5


@pytest.mark.slow
def test_a_rule_of_ones_own_learns_and_passes_the_checks():
    text = printed(OWN_RULE)
    assert len((EXAMPLES / OWN_RULE).read_text().splitlines()) <= 40
    ((accuracy,),) = numbers(r"^validation accuracy (\S+)$", text)
    assert accuracy >= ACCURACY_FLOOR
    ((passed, failed, exempt),) = numbers(
        r"^signum: (\d+) passed, (\d+) failed, (\d+) exempt", text
    )
    assert (failed, exempt) == (0, 1)
    assert passed >= 40


@pytest.mark.slow
def test_muon_is_compared_with_adamw_and_soap_after_equal_searches():
    text, files = ran(MUON, "--quick")
    assert files.keys() == {"muon_transformer.png"}
    assert files["muon_transformer.png"].startswith(b"\x89PNG")
    _, described, searches, comparison = steps_of(text, 3)
    rules = dict(re.findall(r"^(\S+) +\(.*\) +(adam|muon) ", described, re.MULTILINE))
    hidden = {path for path in rules if re.fullmatch(r"blocks/.*/kernel", path)}
    assert {path for path, rule in rules.items() if rule == "muon"} == hidden
    assert len(hidden) == 12
    ends = numbers(r"^(\S+)" + 3 * r" +(\d\.\d+)" + "$", searches)
    assert [rate for rate, *_ in ends] == [0.001, 0.1]
    line = r"^(\S+(?:, \S+ seconds)?) +(\S+) +(\S+) ± \S+ +(\d+) +(\S+) +(\S+) +(\S+)$"
    table = {name: row for name, *row in re.findall(line, comparison, re.MULTILINE)}
    assert list(table) == [
        "adamw",
        "muon",
        "soap",
        "adamw, muon's seconds",
        "adamw, soap's seconds",
    ]
    rates, bits, updates, each, seconds, state_bytes = zip(
        *([float(cell.replace(",", "")) for cell in row] for row in table.values()), strict=True
    )
    assert {*rates} <= {0.001, 0.1}
    # Guessing among 103 characters costs 6.7 bits.
    assert 2 < min(bits) <= max(bits) < 6
    assert updates[:3] == (40, 40, 40)
    assert all(update % 10 == 0 for update in updates)
    assert min(*each, *seconds) > 0
    # AdamW keeps two numbers for each parameter, Muon one for each number of a hidden matrix.
    adamw, muon, soap, *longer = state_bytes
    assert muon < adamw < soap
    assert longer == [adamw, adamw]


@pytest.mark.slow
def test_averages_and_ensembles_are_compared_with_single_runs():
    text, files = ran(AVERAGES, "--quick")
    assert files.keys() == {"averages_and_ensembles.png"}
    assert files["averages_and_ensembles.png"].startswith(b"\x89PNG")
    _, averages, ensembles = steps_of(text, 2)
    rows = numbers(r"^(?:SGD|Adam), .*?" + 3 * r" +(\S+) / (\S+)" + "$", averages)
    assert len(rows) == 4
    # Of 60 updates, the last weights have left guessing, with an error of 90%, far behind.
    assert max(row[0] for row in rows) < 40
    line = r"^(\d+ \w+.*?)  +(\d+) +(\S+)(?: ± \S+)? +(\S+)(?: ± \S+)? "
    table = {name: row for name, *row in re.findall(line, ensembles, re.MULTILINE)}
    assert list(table) == [
        "1 model",
        "3 models",
        "5 models",
        "10 models",
        "5 snapshots of 60",
        "5 snapshots of 300",
        "1 model, 5 times as long",
    ]
    updates = [int(updates) for updates, *_ in table.values()]
    assert updates == [60, 180, 300, 600, 60, 300, 300]
    nll = {name: float(row[2]) for name, row in table.items()}
    # By Jensen's inequality, on the mean over groups.
    assert nll["10 models"] < nll["1 model"]


@pytest.mark.slow
def test_ways_to_fine_tune_are_compared_at_equal_searches():
    text, files = ran(FINE_TUNE, "--quick")
    assert files.keys() == {"fine_tune.png"}
    assert files["fine_tune.png"].startswith(b"\x89PNG")
    _, described, learned, comparison = steps_of(text, 3)
    rates = dict(re.findall(r"^(\w+)/kernel .* schedule from (\S+) ", described, re.MULTILINE))
    assert rates == {"conv1": "0.000125", "conv2": "0.00025", "dense": "0.0005", "head": "0.001"}
    ((error,),) = numbers(r"^error on these images: (\S+)%$", learned)
    # Guessing among five digits errs on 80%; 24 updates bring it far below.
    assert error < 50
    cell = r"(\d+\.\d) ± \d+\.\d at (0\.001|3\.2) *"
    table = re.findall(rf"^([a-z ,-]+?) +{3 * cell}$", comparison, re.MULTILINE)
    names = ["from scratch", "all, one rate", "head only", "head, random rest"]
    names += ["head, then more", "layer-wise decay"]
    assert [name for name, *_ in table] == names
    errors = [float(row[column]) for row in table for column in (1, 3, 5)]
    assert 0 < min(errors) <= max(errors) < 100
    # Twelve updates suffice to do better than guessing where the head alone is trained.
    assert max(float(table[2][column]) for column in (1, 3, 5)) < 75
    more = numbers(r"^[a-z ,-]+?" + 3 * r" +([+-]\d+\.\d) ± \d+\.\d" + "$", comparison)
    # Differences of errors that are printed to one digit each.
    zero = [float(table[0][column]) for column in (1, 3, 5)]
    for row, differences in zip(table[1:], more, strict=True):
        for place, difference in enumerate(differences):
            want = float(row[1 + 2 * place]) - zero[place]
            assert difference == pytest.approx(want, abs=0.16)


@pytest.mark.slow
def test_batch_sizes_are_compared_with_what_the_rules_and_the_noise_predict():
    text, files = ran(BATCH_SIZE, "--quick")
    assert files.keys() == {"batch_size.png"}
    assert files["batch_size.png"].startswith(b"\x89PNG")
    rows = numbers(r"^ +(16|32) +(\S+) +(\d+) +(\d+) +(\d+) ", text)
    batches, rates, steps, examples, predicted = zip(*rows, strict=True)
    assert batches == (16, 32)
    assert min(rates) > 0
    # As printed, to whole steps.
    assert all(abs(e - b * n) <= b for b, n, e in zip(batches, steps, examples, strict=True))
    assert predicted[0] == steps[0]
    # The noise predicts between half of the steps and as many.
    assert steps[0] / 2 - 1 < predicted[1] <= steps[0]
    ((noise,),) = numbers(r"^Adam: noise scale .*, (\d+) on average$", text)
    assert noise > 0
    # Ratios of the rules at 32 examples, to the better of two rates.
    ((*ratios,),) = numbers(r"^ +32 .*" + 4 * r" +(\d+\.\d\d)" + "$", text)
    assert all(0.3 < ratio < 3 for ratio in ratios)


@pytest.mark.slow
def test_sharded_training_ends_alike_on_four_devices_on_one_and_from_a_checkpoint_on_two():
    text, files = ran(SHARDED)
    assert not files
    heading, held, moved, compared, resumed = steps_of(text, 4)
    assert heading.startswith("4 devices of the kind cpu, 64 examples a batch")
    ((whole, divided),) = re.findall(
        r"^whole (\S+) bytes, divided (\S+) bytes$", held, re.MULTILINE
    )
    whole, divided = (int(number.replace(",", "")) for number in (whole, divided))
    # A quarter, but for the bias of ten classes and the numbers of the whole tree.
    assert whole / 4 < divided < whole / 4 + 200
    counts = dict(re.findall(r"^(\S.*?)  +(\d.*)$", moved, re.MULTILINE))
    assert counts["AdamW"] == "5 all-gather, 1 all-reduce"
    assert list(counts) == ["AdamW", "clip, AdamW", "Muon"]
    ends = numbers(r"loss (\S+)  test accuracy (\S+)$", compared + resumed)
    assert len(ends) == 3
    assert min(accuracy for _, accuracy in ends) > ACCURACY_FLOOR
    losses = [value for value, _ in ends]
    # The parameters differ by less than 1e-4, as asserted below.
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-3)
    apart = numbers(r"^parameters differ by (\S+) of the largest$", compared + resumed)
    # Sums in another order, 1e-7 each, over 200 updates.
    assert 0 <= max(apart)[0] < 1e-4
    assert len(apart) == 2


@pytest.mark.slow
def test_rates_are_compared_over_widths_in_both_parametrizations():
    text, files = ran(WIDTH, "--quick")
    assert files.keys() == {"width_transfer.png"}
    assert files["width_transfer.png"].startswith(b"\x89PNG")
    _, checks, rates = steps_of(text, 2)
    outputs = numbers(r"^output" + 3 * r" +(\S+)" + "$", checks)
    standard, own = (slope for *_, slope in outputs)
    # At widths 64 and 256, from one seed; the slope of a standard network is 0.5 to 1.
    assert standard > 0.4
    assert abs(own) < 0.3
    rows = re.findall(
        r"^(standard|μP) +(\d+) +(\S+) +(\S+) +(-\d) +(\S+) × loss$", rates, re.MULTILINE
    )
    assert [row[:2] for row in rows] == [(n, w) for n in ("standard", "μP") for w in ("8", "32")]
    # At the base width both are the same network.
    assert rows[0][2:] == rows[2][2:]
    # Guessing costs log 10 = 2.30, whose logarithm is 0.36.
    assert all(float(loss) < 0.4 for row in rows for loss in row[2:4])
