"""Malformed command lines, each with a part of the one line that must answer it.

`python tests/malformed_lines.py` runs all of them in one process and prints a table: the status,
the milliseconds, and the answer. It ends with status 1 if an answer is not one line with status 2
that has the expected part, or takes a second or more, or if JAX was loaded.
"""

import contextlib
import io
import os
import shlex
import sys
import tempfile
import time
from typing import NamedTuple

from optlab import cli

RATE_LIMITS = "a rate must be from 1.2e-38 to 3.4e+38"

CASES = {
    # commands and options that do not exist
    "compere": "invalid choice: 'compere'",
    "Train": "invalid choice: 'Train'",
    "--vresion": "unrecognized arguments: --vresion",
    "train --bogus": "unrecognized arguments: --bogus",
    "train --lr 0.1": "unrecognized arguments: --lr 0.1",
    "train extra": "unrecognized arguments: extra",
    "sweep --dask here": "expected the address of a scheduler, such as tcp://10.0.0.5:8786, got 'h",
    "sweep --dask tcp://h:1 --search bayes": "--dask cannot go with --search bayes, which learns",
    "sweep --ste 5": "unrecognized arguments: --ste 5",
    "compare --optimizer adam": "unrecognized arguments: --optimizer adam",
    "lr-range --schedule 'cosine(learning_rate, 5)'": "unrecognized arguments: --schedule",
    "train --task": "argument --task: expected one argument",
    "train --json=yes": "argument --json: ignored explicit argument 'yes'",
    "dialects --all": "unrecognized arguments: --all",
    "plot-schedule": "the following arguments are required: SCHEDULE",
    "completion": "the following arguments are required: SHELL",
    "completion powershell": "unknown shell 'powershell'",
    "dialects rmprop": "unknown rule 'rmprop'; did you mean 'rmsprop'?",
    # tune
    "tune --budget": "argument --budget: expected one argument",
    "tune --budget soon": "argument --budget: expected a time above 0",
    "tune --budget 0m": "argument --budget: expected a time above 0",
    "tune --budget -5m": "argument --budget: expected",
    "tune --budget 5d": "argument --budget: expected a time above 0, such as 90s, 10m or 2h",
    "tune --optimizers admw": "unknown optimizer 'admw'; did you mean 'adamw', 'adam'?",
    "tune --optimizers mine.py:rule": "did you mean 'mine:rule'?",
    "tune --optimizers a:b --clip 1": "--clip does not reach a:b",
    "tune --space momentun=0.5:0.9": "argument --space: unknown hyperparameter",
    "tune --space weight_decay=1:0": "argument --space",
    "tune --optimizers adamw --space b1=0.5:1.5": "b1 must be in [0, 1)",
    "tune --set learning_rate=0.1": "the learning rate has an option of its own, --space",
    "tune --rate 0.1": "unrecognized arguments: --rate",
    # names
    "train --optimizer admw": "unknown optimizer 'admw'; did you mean 'adamw', 'adam'?",
    "train --optimizer ''": "unknown optimizer ''",
    "train --optimizer ADAM": "unknown optimizer 'ADAM'",
    "sweep --optimizer adm": "unknown optimizer 'adm'; did you mean 'adam'",
    "lr-range --optimizer sdg": "unknown optimizer 'sdg'; did you mean 'sgd'",
    "compare --optimizers sgd,admw": "unknown optimizer 'admw'",
    "compare --optimizers sgd,sgd": "values must differ, got sgd twice",
    "compare --optimizers sgd,": "expected names separated by commas, got an empty one",
    "compare --optimizers ,": "expected names separated by commas, got an empty one",
    "train --task digits": "unknown task 'digits'; did you mean 'digits-mlp', 'digits-cnn'?",
    "train --task mnist": "unknown task 'mnist'",
    "sweep --task ''": "unknown task ''",
    "lr-range --task Valley": "unknown task 'Valley'",
    "bench --task valley": "unrecognized arguments: --task valley",
    "bench --rates 1e-3": "unrecognized arguments: --rates 1e-3",
    "bench --tasks": "argument --tasks: expected at least one argument",
    "bench --tasks digits": "unknown task 'digits'; did you mean 'digits-mlp', 'digits-cnn'?",
    "bench --tasks valley": "unknown task 'valley'",
    "bench --tasks signals,": "expected names separated by commas, got an empty one",
    "bench --tasks signals,signals": "values must differ, got signals twice",
    "bench --tasks signals signals": "argument --tasks: values must differ, got signals twice",
    "bench --tasks my/task.py:task": "argument --tasks: expected module:attribute with dots",
    "bench --optimizers admw": "unknown optimizer 'admw'; did you mean 'adamw', 'adam'?",
    "bench --optimizers sgd adam sgd": "argument --optimizers: values must differ, got sgd twice",
    "bench --optimizers rule.py:rule": "argument --optimizers: expected module:attribute",
    "bench --optimizers a:": "such as mypackage.mymodule:rule, got 'a:'",
    "bench --trials 0": "argument --trials: expected a whole number >= 1, got '0'",
    "bench --seeds 1.5": "argument --seeds: expected a whole number >= 1, got '1.5'",
    "bench --steps 0": "argument --steps: expected a whole number >= 1, got '0'",
    "bench --results gs://x/y": "argument --results: the path must be a file on this machine",
    "bench --quick=yes": "argument --quick: ignored explicit argument 'yes'",
    "lr-range --mode linar": "unknown mode 'linar'; did you mean 'linear'?",
    "sweep --search bays": "unknown search 'bays'; did you mean 'bayes'?",
    "sweep --search ''": "unknown search ''",
    # whole numbers
    "train --steps 0": "argument --steps: expected a whole number >= 1, got '0'",
    "train --steps 1.5": "argument --steps: expected a whole number >= 1, got '1.5'",
    "train --steps -3": "argument --steps: expected a whole number >= 1, got '-3'",
    "train --steps 1e3": "argument --steps: expected a whole number >= 1, got '1e3'",
    "train --steps 2147483648": "argument --steps: expected a whole number below 2**31",
    "train --steps 99999999999999999999": "argument --steps: expected a whole number below 2**31",
    "train --steps ''": "argument --steps: expected a whole number >= 1, got ''",
    "train --steps ٣": "argument --steps: expected a whole number >= 1, got '٣'",
    "train --seed -1": "argument --seed: expected a whole number >= 0, got '-1'",
    "train --seed x": "argument --seed: expected a whole number >= 0, got 'x'",
    "compare --seed -1": "argument --seed: expected a whole number >= 0, got '-1'",
    "lr-range --seed 0.5": "argument --seed: expected a whole number >= 0, got '0.5'",
    "compare --seeds 0": "argument --seeds: expected a whole number >= 1, got '0'",
    "compare --seeds 999999999999999": "argument --seeds: expected a whole number below 2**31",
    "sweep --seeds 5 --seed 2147483647": "argument --seeds: the last seed must be below 2**31",
    "compare --seeds 2147483647": "argument --seeds: expected at most 1000000",
    "sweep --trials 0": "argument --trials: expected a whole number >= 1, got '0'",
    "sweep --trials 2147483647": "argument --trials: expected at most 1000000",
    "sweep --trials many": "argument --trials: expected a whole number >= 1, got 'many'",
    "sweep --halving 1": "argument --halving: expected a whole number >= 2, got '1'",
    "sweep --refine 0": "argument --refine: expected a whole number >= 1, got '0'",
    "train --patience 0": "argument --patience: expected a whole number >= 1, got '0'",
    "train --patience 3,begin=1": "names of min_delta, start, target, divergence, got 'begin=1'",
    "train --patience 3,start=-1": "argument --patience: expected a whole number >= 0, got '-1'",
    "sweep --patience 3,target=nan": "expected a finite number such as 1e-3, got 'nan'",
    "compare --patience 3,min_delta=-1": "argument --patience: expected a number >= 0, got '-1'",
    "train --patience 3,start=1,start=2": "argument --patience: names must differ, got start twice",
    "train --patience 3,": "argument --patience: expected NAME=VALUE, got ''",
    "train --keep 0": "argument --keep: expected a whole number >= 1, got '0'",
    "train --ensemble 0": "argument --ensemble: expected a whole number >= 1, got '0'",
    "train --snapshots two": "argument --snapshots: expected a whole number >= 1, got 'two'",
    "lr-range --steps 9": "argument --steps: expected at least 10, got 9",
    "plot-schedule 'constant(1)' --steps 0": "argument --steps: expected a whole number >= 1",
    "train --batch-size 0": "argument --batch-size: expected a whole number >= 1, got '0'",
    "train --batch-size 5000": "digits-mlp: batch_size must be an integer >= 1 and at most 1078",
    "lr-range --task valley --batch-size 4": "the task 'valley' has no batches; leave out --batch",
    # rates and other numbers
    "train --rate abc": "argument --rate: expected a finite number such as 1e-3, got 'abc'",
    "train --rate -1e-3": f"argument --rate: {RATE_LIMITS}, got '-1e-3'",
    "train --rate 0": f"argument --rate: {RATE_LIMITS}, got '0'",
    "train --rate nan": "argument --rate: expected a finite number such as 1e-3, got 'nan'",
    "train --rate 1e-50": f"argument --rate: {RATE_LIMITS}, got '1e-50'",
    "train --rate 0,1": "argument --rate: expected a finite number such as 1e-3, got '0,1'",
    "train --rate ''": "argument --rate: expected a finite number such as 1e-3, got ''",
    "train --clip 0": "argument --clip: a norm must be from 1.2e-38 to 3.4e+38, got '0'",
    "train --clip -1": "argument --clip: a norm must be from 1.2e-38 to 3.4e+38, got '-1'",
    "sweep --clip one": "argument --clip: expected a finite number such as 1e-3, got 'one'",
    "lr-range --min-lr 0": f"argument --min-lr: {RATE_LIMITS}, got '0'",
    "lr-range --min-lr -1e-5": f"argument --min-lr: {RATE_LIMITS}, got '-1e-5'",
    "lr-range --max-lr inf": "argument --max-lr: expected a finite number such as 1e-3, got 'inf'",
    "lr-range --min-lr 1 --max-lr 1": "--min-lr must be below --max-lr, got 1 and 1",
    "lr-range --min-lr 20": "--min-lr must be below --max-lr, got 20 and 10",
    "compare --rates fast": "argument --rates: expected a finite number such as 1e-3, got 'fast'",
    "compare --rates 1e-3,": "argument --rates: expected a finite number such as 1e-3, got ''",
    "compare --rates 0": f"argument --rates: {RATE_LIMITS}, got '0'",
    "compare --rates -1e-3,1": f"argument --rates: {RATE_LIMITS}, got '-1e-3'",
    "compare --rates 0.1,1e-1": "argument --rates: values must differ, got 0.1 twice",
    "compare --rates 1e-3:1": "argument --rates: a range must read LOW:HIGH:COUNT with COUNT from",
    "compare --rates 1e-3:1:1": "argument --rates: a range must read LOW:HIGH:COUNT with COUNT",
    "compare --rates 1:1:3": "argument --rates: LOW must be below HIGH in LOW:HIGH:COUNT, got",
    "compare --rates 1:2:3:4": "argument --rates: a range must read LOW:HIGH:COUNT with COUNT",
    "compare --target nan": "argument --target: expected a finite number",
    "train --average ema": "argument --average: expected one of ema:DECAY, uniform:START",
    "train --average mean:3": "argument --average: expected one of ema:DECAY, uniform:START",
    "train --average ema:x": "argument --average: expected a finite number such as 1e-3, got 'x'",
    "train --average ema:1": "argument --average: DECAY must be in [0, 1), got '1'",
    "train --average power:0": "argument --average: WIDTH must be in (0, 1/√12], got '0'",
    # hyperparameters
    "train --set momentum": "argument --set: expected NAME=VALUE, got 'momentum'",
    "train --set =3": "argument --set: expected NAME=VALUE, got '=3'",
    "train --set b1=": "argument --set: expected NAME=VALUE, got 'b1='",
    "train --set b-1=3": "argument --set: expected NAME=VALUE, got 'b-1=3'",
    "train --set b3=0.9": "argument --set: unknown hyperparameter of adam 'b3' (known: batch_size",
    "train --set b1=0.9 --set b1=0.8": "argument --set: names must differ, got b1 twice",
    "train --set b1=1": "adam: b1 must be in [0, 1), got b1=1",
    "train --set b1=fast": "adam: b1 must be a number, got b1=fast",
    "train --set b1=none": "adam: b1 must be a number, got b1=none",
    "train --set eps=-1": "adam: eps must be finite and >= 0, got eps=-1",
    "train --set eps=inf": "adam: eps must be finite and >= 0, got eps=inf",
    "train --set amsgrad=maybe": "adam: amsgrad must be true or false, got amsgrad=maybe",
    "train --set amsgrad=1": "adam: amsgrad must be true or false, got amsgrad=1",
    "train --set nesterov=none": "adam: nesterov must be true or false, got nesterov=none",
    "train --set learning_rate=1": "the learning rate has an option of its own, --rate",
    "lr-range --set learning_rate=1": "the learning rate has an option of its own, --min-lr",
    "compare --set learning_rate=1": "the learning rate has an option of its own, --rates",
    "compare --set weight_decay=-1": "weight_decay must be finite and >= 0, got weight_decay=-1",
    "compare --set momentun=0.9": "hyperparameter of the optimizers 'momentun'; did you me",
    "lr-range --set dropout=1": "digits-mlp: dropout must be in [0, 1), got dropout=1",
    "train --set width=1": "digits-mlp: width must be an integer >= 2, got width=1",
    "train --set width=2.5": "digits-mlp: width must be an integer >= 2, got width=2.5",
    "train --batch-size 8 --set batch_size=9": "batch_size is in --set and in --batch-size",
    "train --optimizer muon --set ns_steps=0": "muon: ns_steps must be an integer >= 1, got ns_ste",
    "train --optimizer muon --set scale=big": "muon: scale must be one of 'moonshot', 'keller_jor",
    # schedules
    "train --rate 'cosin(1)'": "unknown schedule 'cosin'; did you mean 'cosine'",
    "train --rate 'cosine(1)'": "cosine: missing argument 'decay_steps'",
    "train --rate 'cosine(1, 2'": "argument --rate: cannot read 'cosine(1, 2'",
    "train --rate 'cosine(1, 0)'": "cosine: decay_steps must be an integer >= 1, got decay_steps=0",
    "train --rate 'cosine(1, steps=5)'": "cosine: unknown argument 'steps'",
    "train --rate 'cosine(1, 2, 3, 4)'": "cosine: 4 arguments are too many",
    "train --rate 'constant(1+1)'": "only numbers, strings, lists and calls of schedules are",
    "train --rate '__import__(\"os\")'": "unknown schedule '__import__'",
    "train --rate 'constant(rate)'": "only numbers, strings, lists and calls of schedules are",
    "train --schedule 'cosine(1, 20)'": "learning_rate must stand in it for the rate",
    "train --schedule cosine": "cosine needs its arguments: cosine(init_value, decay_steps",
    "train --schedule learning_rate": "argument --schedule: unknown schedule 'learning_rate'",
    "train --rate 'constant(1)' --schedule 'cosine(learning_rate, 5)'": "--rate is a schedule",
    "compare --schedule 'cosine(learning_rate)'": "cosine: missing argument 'decay_steps'",
    "sweep --schedule 'cosine(learning_rate, wait)'": "only numbers, strings, lists and calls of",
    "plot-schedule 'cosine(1, -5)'": "cosine: decay_steps must be an integer >= 1, got decay_steps",
    "plot-schedule 1e-3": "expected the call of a schedule, got '1e-3'",
    "plot-schedule ''": "cannot read ''",
    # spaces
    "sweep --space 1e-3:1": "argument --space: expected NAME=VALUE, got '1e-3:1'",
    "sweep --space learning_rate=": "argument --space: expected NAME=VALUE, got 'learning_rate='",
    "sweep --space learning_rate=2:1": "LOW must not be above HIGH, got 2 and 1",
    "sweep --space b1=1:1": "adam: b1 must be in [0, 1), got b1=1",
    "sweep --space learning_rate=0:1:log": "with :log, LOW must be above 0, got 0",
    "sweep --space learning_rate=-1.5:1.5": "learning_rate must be finite and >= 0",
    "sweep --space learning_rate=1:2:3": "write LOW:HIGH, LOW:HIGH:log, LOW:HIGH:int",
    "sweep --space learning_rate=1:2:log:log": "write LOW:HIGH, LOW:HIGH:log, LOW:HIGH:int",
    "sweep --space learning_rate=a:b": "LOW must be a finite number, got 'a'",
    "sweep --space learning_rate=0:inf": "HIGH must be a finite number, got 'inf'",
    "sweep --space learning_rate=:1": "LOW must be a finite number, got ''",
    "sweep --space learning_rate=1e-3,fast": "adam: learning_rate must be a number, got",
    "sweep --space learning_rate=1,1": "the choices must differ",
    "sweep --space learning_rate=1,": "a choice is empty",
    "sweep --space learning_rate=nan,1": "choices must be finite, got nan",
    "sweep --space rate=1:2": "argument --space: unknown hyperparameter of adam 'rate'",
    "sweep --space b1=0.9:1.5": "argument --space: adam: b1 must be in [0, 1), got b1=0.9:1.5",
    "sweep --space b1=true,false": "argument --space: adam: b1 must be a number, got b1=true",
    "sweep --space nesterov=yes,maybe": "adam: nesterov must be true or false, got nesterov=maybe",
    "sweep --space nesterov=yes,on": "the choices of nesterov must differ, got nesterov=yes,on",
    "sweep --space nesterov=0:1": "got nesterov=0:1; write nesterov=yes,no",
    "sweep --space batch_size=16:64": "batch_size must be a whole number, got the real numbers bat",
    "sweep --space batch_size=16.5:64:int": "with :int, LOW must be a whole number, got 16.5",
    "sweep --space batch_size=16:5000:int": "batch_size must be an integer >= 1 and at most 1078",
    "sweep --space width=1:64:int": "digits-mlp: width must be an integer >= 2, got width=1:64:int",
    "sweep --space width=8.5,16": "digits-mlp: width must be an integer >= 2, got width=8.5",
    "sweep --space dropout=0:1.5": "digits-mlp: dropout must be in [0, 1), got dropout=0:1.5",
    "sweep --task valley --space width=8:64:int": "unknown hyperparameter of adam 'width'",
    "sweep --space b1=0.5 --space b1=0.9": "argument --space: names must differ, got b1 twice",
    "sweep --space b1=0:0.9 --set b1=0.9": "b1 is in --space and in --set; leave out one of them",
    "sweep --space batch_size=8,16 --batch-size 4": "batch_size is in --space and in --batch-size",
    "sweep --space learning_rate=1,2 --rate 1": "learning_rate is in --space and in --rate",
    "sweep --rate 1": "argument --space: with --rate, another hyperparameter must be given",
    # options that need or exclude others, files and folders
    "train --keep 2": "--keep needs --checkpoints",
    "train --take-over learning_rate": "--take-over needs --checkpoints",
    "train --ensemble 2 --snapshots 2": "--ensemble and --snapshots exclude each other",
    "train --ensemble 2 --patience 3": "--ensemble cannot go with --patience",
    "sweep --patience 0": "argument --patience: expected a whole number >= 1, got '0'",
    "compare --patience x": "argument --patience: expected a whole number >= 1, got 'x'",
    "sweep --storage sqlite:///x.db": "--storage needs --search bayes",
    "sweep --search bayes --halving 2": "--halving cannot go with --search bayes",
    "sweep --search bayes --storage sqlite:///x --results r": "--storage and --results exclude",
    "train --freeze ''": "argument --freeze: expected a pattern such as head, got nothing",
    "train --group head": "argument --group: expected PATTERN:NAME=VALUE, got 'head'",
    "train --group 'he(ad:lr_mult=1'": "argument --group: 'he(ad' is no regular expression",
    "train --group head:lr_mult=-1": "groups.group: lr_mult must be finite and >= 0, got",
    "train --group head:b3=1": "the group 'head' must set hyperparameters of its optimizer, adam",
    "train --group head:b1=2": "adam: b1 must be in [0, 1), got b1=2",
    "train --unfreeze head:x": "argument --unfreeze: expected a whole number >= 0, got 'x'",
    "train --steps 5 --unfreeze head:5": "STEP must be below the 5 updates of the run, got head:5",
    "train --layer-decay 2": "argument --layer-decay: D must be in (0, 1], got '2'",
    "train --out gs://b/run": "argument --out: the path must be a folder on this machine, got",
    "train --out /proc/no/run": "cannot write to '/proc/no",
    "train --checkpoints s3://b": "folder on this machine or an address that begins with gs:",
    "train --tensorboard s3://b/run": "argument --tensorboard: the path must be a folder on",
    "sweep --results gs://b/r": "argument --results: the path must be a file on this machine",
    "lr-range --out plot.txt": "argument --out: expected a file in .png, .svg, .pdf, got",
    "plot-schedule 'constant(1)' --out .": "argument --out: expected a file in .png, .svg, .pdf",
    "train --task mine.py:task": "did you mean 'mine:task'?",
    "train --task a/b.py:task": "did you mean 'a.b:task'?",
    "train --task :task": "argument --task: expected module:attribute with dots between names",
    "train --task mine:": "argument --task: expected module:attribute with dots between names",
}
"""Command line → a part of the answer."""


class Answer(NamedTuple):
    """How a command line was answered."""

    status: object
    err: str
    seconds: float
    problem: str


def answer(line: str, part: str) -> Answer:
    """Run a command line in this process; say what is wrong with its answer, if anything."""
    out, err = io.StringIO(), io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = cli.main(shlex.split(line))
        except BaseException as error:
            status = repr(error)
    seconds = time.perf_counter() - began
    problems = {
        "another status than 2": status != 2,
        "something on stdout": bool(out.getvalue()),
        "not one line": err.getvalue().count("\n") != 1,
        "another answer": part not in err.getvalue(),
        "a second or more": seconds >= 1,
    }
    problem = ", ".join(name for name, is_so in problems.items() if is_so)
    return Answer(status, err.getvalue().strip(), seconds, problem)


def main() -> int:
    """Print the table; return 1 if an answer is wrong."""
    wrong, slowest = 0, 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for line, part in CASES.items():
            result = answer(line, part)
            slowest = max(slowest, result.seconds)
            wrong += bool(result.problem)
            print(f"{result.status!s:>3} {1000 * result.seconds:6.0f} ms  optlab {line}")
            print(
                f"    {result.err[:150]}" + (f"   WRONG: {result.problem}" * bool(result.problem))
            )
        made = os.listdir(folder)
    print(f"{len(CASES)} command lines, {wrong} wrong answers, slowest {1000 * slowest:.0f} ms")
    print(f"JAX loaded: {'jax' in sys.modules}; files made: {made or 'none'}")
    return int(wrong > 0 or "jax" in sys.modules or bool(made))


if __name__ == "__main__":
    sys.exit(main())
