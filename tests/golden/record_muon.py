"""Record Muon as PyTorch, timm, Keras and Optax compute it: `record_muon.py [--check]`.

All compute in float64. PyTorch and timm are made to keep that type in the Newton–Schulz steps, for
which they take bfloat16 otherwise, and Keras in the norm of a matrix, for which it takes float32.
With --check the file stays as it is, and the largest difference to it is reported. Needs torch,
timm, keras and optax; what is recorded does not depend on optlab.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden.cases import Wave
from golden.muon_cases import FILE, MUON, RECORDED, SHAPES, UPDATES, gradient, start

os.environ["KERAS_BACKEND"] = "jax"


def fixed(case):
    """Return the options, with the first value of those that move."""
    return {k: v for k, v in case.options.items() if not isinstance(v, Wave)} | {
        k: float(values[0]) for k, values in case.moving().items()
    }


def follow(step, params):
    """Return the parameters at the recorded updates, all coordinates in one array."""
    rows = []
    for t in range(1, UPDATES + 1):
        params = step(gradient(t), params, t)
        if t in RECORDED:
            rows.append(np.concatenate([np.ravel(p) for p in params.values()]))
    return np.stack(rows)


def torch_parameters(params):
    """Return parameters (out, in) with float64 elements."""
    import torch

    return {k: torch.nn.Parameter(torch.tensor(p.T.copy())) for k, p in params.items()}


def run_torch(make, case, names):
    """Return what an optimizer of PyTorch does with some of the parameters."""
    import torch

    params = {k: p for k, p in start().items() if k in names}
    tensors = torch_parameters(params)
    optimizer = make(list(tensors.values()), lr=case.rate, **fixed(case))
    (group,) = optimizer.param_groups

    def step(gradients, params, t):
        group["lr"] = float(case.rates()[t - 1])
        group.update({k: float(values[t - 1]) for k, values in case.moving().items()})
        for k, p in tensors.items():
            p.grad = torch.tensor(gradients[k].T.copy())
        optimizer.step()
        return {k: p.detach().numpy().T.copy() for k, p in tensors.items()}

    return follow(step, params)


def record_pytorch():
    """Yield the name and the parameters of each case of PyTorch, matrices alone."""
    import torch

    narrow, torch.Tensor.bfloat16 = torch.Tensor.bfloat16, torch.Tensor.clone
    matrices = [name for name, shape in SHAPES.items() if len(shape) == 2]
    for name, case in MUON["pytorch"].items():
        yield name, run_torch(torch.optim.Muon, case, matrices)
    torch.Tensor.bfloat16 = narrow


def record_timm():
    """Yield the name and the parameters of each case of timm."""
    import timm
    import torch
    from timm.optim import muon

    defaults = muon.zeropower_via_newtonschulz.__defaults__
    muon.zeropower_via_newtonschulz.__defaults__ = tuple(
        torch.float64 if value is torch.bfloat16 else value for value in defaults
    )
    for name, case in MUON["timm"].items():
        yield name, run_torch(timm.optim.Muon, case, list(SHAPES))


def record_keras():
    """Yield the name and the parameters of each case of Keras."""
    import jax
    import keras

    keras.config.set_floatx("float64")
    ops = keras.src.optimizers.muon.ops
    narrow, ops.norm = (
        ops.norm,
        lambda x, **axes: jax.numpy.linalg.norm(ops.convert_to_tensor(x), **axes),
    )
    for name, case in MUON["keras"].items():
        optimizer = keras.optimizers.Muon(learning_rate=case.rate, **case.options)
        params = start()
        optimizer.build([keras.Variable(p, dtype="float64", name=k) for k, p in params.items()])
        state = [np.asarray(v) for v in optimizer.variables]
        (rate,) = (i for i, v in enumerate(optimizer.variables) if v is optimizer.learning_rate)
        apply = jax.jit(optimizer.stateless_apply)

        def step(gradients, params, t, state=state, rate=rate, apply=apply, case=case):
            state[rate] = case.rates()[t - 1]
            new, after = apply(state, list(gradients.values()), list(params.values()))
            state[:] = after
            return dict(zip(params, map(np.asarray, new), strict=True))

        yield name, follow(step, params)
    ops.norm = narrow


def record_optax():
    """Yield the name and the parameters of each case of Optax."""
    import jax
    import optax

    def schedule(values):
        return lambda count: jax.numpy.asarray(values)[count]

    for name, case in MUON["optax"].items():
        make, moving = optax.contrib.muon, {k: schedule(v) for k, v in case.moving().items()}
        if moving:
            make = optax.inject_hyperparams(make, static_args=("ns_coeffs", "ns_steps"))
        tx = make(schedule(case.rates()), **(fixed(case) | moving))
        params = start()
        state, update = [tx.init(params)], jax.jit(tx.update)

        def step(gradients, params, t, state=state, update=update):
            updates, state[0] = update(gradients, state[0], params)
            new = optax.apply_updates(params, updates)
            # A tree comes back in the order of its keys.
            return {k: np.asarray(new[k]) for k in params}

        yield name, follow(step, params)


def main():
    """Record, or check, all cases."""
    import jax
    import keras
    import optax
    import timm
    import torch

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    arguments = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    modules = {"pytorch": torch, "timm": timm, "keras": keras, "optax": optax}
    versions = {name: module.__version__.split("+")[0] for name, module in modules.items()}
    recorders = {
        "pytorch": record_pytorch,
        "timm": record_timm,
        "keras": record_keras,
        "optax": record_optax,
    }
    recorded = {
        f"{framework}/{name}": values
        for framework, record in recorders.items()
        for name, values in record()
    }
    if not arguments.check:
        np.savez_compressed(FILE, **versions, **recorded)
        return
    with np.load(FILE) as file:
        were = {framework: str(file[framework]) for framework in versions}
        print(f"recorded with {were}, now {versions}")
        missing = (set(recorded) | set(versions)) ^ set(file)
        if missing:
            sys.exit(f"only in one of the two: {', '.join(sorted(missing))}")
        worst, name = max(
            (np.max(np.abs(values - file[name])), name) for name, values in recorded.items()
        )
    print(f"largest difference {worst:.1e}, in {name}")


if __name__ == "__main__":
    main()
