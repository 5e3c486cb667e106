"""Record the rates of PyTorch's and Hugging Face's schedules: `record_schedules.py [--check]`.

Each schedule runs with an optimizer whose gradients are 0, and is read before every update: the
rate, and the momentum where it moves. With --check the file stays as it is, and the largest
difference to it is reported. Needs torch and transformers; what is recorded does not depend on
optlab.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden.schedule_cases import FILE, SCHEDULES


def build(case, optimizer, library):
    """Return the scheduler of a case."""
    make = getattr(library, case.name)
    if not case.parts:
        return make(optimizer, **case.arguments)
    parts = [build(part, optimizer, library) for part in case.parts]
    if case.name == "ChainedScheduler":
        return make(parts, optimizer)
    return make(optimizer, parts, **case.arguments)


def record(case, library, torch):
    """Return the rates, (steps,); with the momenta, (2, steps), where these move."""
    params = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(params, lr=1.0 if case.lr is None else case.lr, momentum=0.9)
    scheduler = build(case, optimizer, library)
    (group,) = optimizer.param_groups
    rows = []
    for step in range(case.steps):
        rows.append((group["lr"], group["momentum"]))
        optimizer.step()
        if step + 1 < case.steps:
            scheduler.step()
    rates, momenta = np.array(rows, np.float64).T
    return np.stack([rates, momenta]) if len(set(momenta)) > 1 else rates


def main():
    """Record, or check, all cases."""
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    libraries = {
        "pytorch": (torch.optim.lr_scheduler, torch.__version__.split("+")[0]),
        "huggingface": (transformers, transformers.__version__),
    }
    recorded = {
        f"{framework}/{name}": record(case, libraries[framework][0], torch)
        for framework, cases in SCHEDULES.items()
        for name, case in cases.items()
    }
    versions = {framework: version for framework, (_, version) in libraries.items()}
    if not parser.parse_args().check:
        np.savez_compressed(FILE, **versions, **recorded)
        return
    with np.load(FILE) as file:
        were = {framework: str(file[framework]) for framework in versions}
        print(f"recorded with {were}, now {versions}")
        missing = (set(recorded) | set(versions)) ^ set(file)
        if missing:
            sys.exit(f"only in one of the two: {', '.join(sorted(missing))}")
        worst, name = max(
            (np.max(np.abs(values - file[name])) / np.max(np.abs(file[name])), name)
            for name, values in recorded.items()
        )
    print(f"largest difference {worst:.1e} of a schedule's largest value, in {name}")


if __name__ == "__main__":
    main()
