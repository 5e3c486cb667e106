"""Record what PyTorch's `update_bn` does: `python tests/golden/record_update_bn.py [--check]`.

A network of two layers, each followed by batch normalization, sees a few batches of one size. With
--check the file stays as it is, and the largest difference to it is reported. Needs torch.
"""

import argparse
from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_name("update_bn.npz")
BATCHES, BATCH_SIZE, INPUTS, WIDTHS = 3, 4, 3, (5, 2)


def data():
    """Return the batches, (batches, examples, inputs), whose means differ."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(BATCHES, BATCH_SIZE, INPUTS)) + 3 * np.arange(BATCHES)[:, None, None]


def kernels():
    """Return the kernel of each layer, (inputs, outputs)."""
    rng = np.random.default_rng(1)
    return [rng.normal(size=shape) for shape in zip((INPUTS, *WIDTHS), WIDTHS, strict=False)]


def record():
    """Return mean and variance of each layer, by name."""
    import torch

    layers = []
    for kernel in kernels():
        linear = torch.nn.Linear(*kernel.shape, bias=False, dtype=torch.float64)
        linear.weight.data = torch.tensor(kernel.T)
        layers += [linear, torch.nn.BatchNorm1d(kernel.shape[1], dtype=torch.float64)]
    torch.optim.swa_utils.update_bn(list(torch.tensor(data())), torch.nn.Sequential(*layers))
    return {
        f"{index}/{name}": getattr(layer, f"running_{name}").numpy()
        for index, layer in enumerate(layers[1::2])
        for name in ("mean", "var")
    }


def load():
    """Return what is recorded, by layer and name."""
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
