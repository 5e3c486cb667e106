"""Record what another implementation of SOAP does: `python tests/golden/record_soap.py [--check]`.

It is that of pytorch-optimizer, which follows the authors' code. Its orthogonal factors are made
in float32; here they stay in float64, so that the numbers are those of the formulas. Gradients are
prescribed. With --check the file stays as it is, and the largest difference to it is reported.
Needs torch and pytorch-optimizer 4.1.
"""

import argparse
from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_name("soap.npz")
UPDATES = 40
RATE, DECAY = 0.02, 0.1
SHAPES = {"bias": (5,), "kernel": (6, 5)}
CASES = {
    "plain": {"precondition_frequency": 3},
    "uncorrected": {"precondition_frequency": 1, "correct_bias": False, "betas": (0.9, 0.8)},
    "one_side_left_out": {"precondition_frequency": 7, "max_precondition_dim": 5, "eps": 1e-3},
}


def start():
    """Return the parameters before the first update."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape) for name, shape in SHAPES.items()}


def gradients():
    """Return the gradients, (updates, …), whose directions are of unlike sizes and drift."""
    rng = np.random.default_rng(1)
    mix, time = rng.normal(size=(6, 6)), np.linspace(0, 1, UPDATES)
    kernel = mix @ (rng.normal(size=(UPDATES, *SHAPES["kernel"])) * 2.0 ** np.arange(5))
    kernel = kernel + 4 * np.sin(3 * time)[:, None, None]
    return {"bias": rng.normal(size=(UPDATES, *SHAPES["bias"])), "kernel": kernel}


def trajectory(options):
    """Return the parameters after each update, by name."""
    import torch
    from pytorch_optimizer import SOAP

    params = {name: torch.nn.Parameter(torch.tensor(p)) for name, p in start().items()}
    optimizer = SOAP(list(params.values()), lr=RATE, weight_decay=DECAY, **options)
    after = {name: [] for name in SHAPES}
    for t in range(UPDATES):
        for name, g in gradients().items():
            params[name].grad = torch.tensor(g[t])
        optimizer.step()
        for name, p in params.items():
            after[name].append(p.detach().numpy().copy())
    return {name: np.array(p) for name, p in after.items()}


def record():
    """Return the trajectories by case and name."""
    import torch

    to = torch.Tensor.to
    torch.Tensor.to = lambda x, *args, **kwargs: (
        x if torch.float32 in args else to(x, *args, **kwargs)
    )
    try:
        return {
            f"{case}/{name}": array
            for case, options in CASES.items()
            for name, array in trajectory(options).items()
        }
    finally:
        torch.Tensor.to = to


def load():
    """Return the recorded trajectories by case and name."""
    with np.load(RECORDED) as file:
        return dict(file)


def main():
    """Record, or check."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    if not parser.parse_args().check:
        np.savez_compressed(RECORDED, **record())
        return
    committed = load()
    worst = max(np.abs(array - committed[name]).max() for name, array in record().items())
    print(f"largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
