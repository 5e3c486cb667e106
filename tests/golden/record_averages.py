"""Record PyTorch's and timm's averages of parameters: `python tests/golden/record_averages.py`.

The parameters after each update are prescribed. SWALR's rates are read before every update, for two
groups and behind another schedule. With --check the file stays as it is, and the largest difference
to it is reported. Needs torch and timm; what is recorded does not depend on optlab.
"""

import argparse
import importlib.util
from importlib.metadata import version
from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_name("averages.npz")
UPDATES = 40
SHAPES = {"weight": (3, 2), "bias": (3,)}
RATES, SWA_RATES = (0.1, 0.5), (0.02, 0.05)
FACTOR = 0.9
START, ANNEAL, EPOCHS = 6, 4, 14
DECAY, LONG_DECAY = 0.9, 0.95


def trajectory():
    """Return the parameters before the first update and after each, (updates + 1, …) by name."""
    rng = np.random.default_rng(0)
    return {
        name: np.cumsum(rng.normal(size=(UPDATES + 1, *shape)), axis=0)
        for name, shape in SHAPES.items()
    }


def averages(make, update):
    """Return the averages after each update, by name."""
    import torch

    model = torch.nn.Linear(2, 3, dtype=torch.float64)

    def move(t):
        with torch.no_grad():
            for name, values in trajectory().items():
                getattr(model, name).copy_(torch.tensor(values[t]))

    move(0)
    averaged = make(model)
    seen = {name: [] for name in SHAPES}
    for t in range(1, UPDATES + 1):
        move(t)
        update(averaged, model, t)
        for name, values in seen.items():
            values.append(getattr(averaged.module, name).detach().numpy().copy())
    return {name: np.array(values) for name, values in seen.items()}


def rates(strategy):
    """Return SWALR's rates behind an exponential decay, (epochs, groups)."""
    import torch

    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": rate} for rate in RATES]
    optimizer = torch.optim.SGD(groups)
    before = torch.optim.lr_scheduler.ExponentialLR(optimizer, FACTOR)
    swa = torch.optim.swa_utils.SWALR(
        optimizer, list(SWA_RATES), anneal_epochs=ANNEAL, anneal_strategy=strategy
    )
    seen = []
    for epoch in range(EPOCHS):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        (before if epoch + 1 <= START else swa).step()
    return np.array(seen)


def timms_model_ema():
    """Return timm's class from its own file, as the package would also ask for torchvision."""
    package = Path(importlib.util.find_spec("timm").origin).parent
    spec = importlib.util.spec_from_file_location("model_ema", package / "utils" / "model_ema.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ModelEmaV3


def record():
    """Return all that is recorded, by name."""
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    model_ema = timms_model_ema()
    cases = {
        "AveragedModel": (AveragedModel, lambda own, model, t: own.update_parameters(model)),
        "AveragedModel-ema": (
            lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY)),
            lambda own, model, t: own.update_parameters(model),
        ),
        "ModelEmaV3": (
            lambda model: model_ema(model, decay=DECAY),
            lambda own, model, t: own.update(model),
        ),
        "ModelEmaV3-warmup": (
            lambda model: model_ema(model, decay=LONG_DECAY, use_warmup=True),
            lambda own, model, t: own.update(model, step=t),
        ),
    }
    of_cases = {
        f"{case}/{name}": values
        for case, pair in cases.items()
        for name, values in averages(*pair).items()
    }
    versions = f"torch {torch.__version__.split('+')[0]}, timm {version('timm')}"
    return {
        "versions": versions,
        "SWALR-cos": rates("cos"),
        "SWALR-linear": rates("linear"),
        **of_cases,
    }


def main():
    """Record, or check, all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    recorded = record()
    if not parser.parse_args().check:
        np.savez_compressed(RECORDED, **recorded)
        return
    with np.load(RECORDED) as file:
        print(f"recorded with {file['versions']}, now {recorded.pop('versions')}")
        worst, name = max(
            (np.max(np.abs(values - file[name])) / np.max(np.abs(file[name])), name)
            for name, values in recorded.items()
        )
    print(f"largest difference {worst:.1e} of the largest value, in {name}")


if __name__ == "__main__":
    main()
