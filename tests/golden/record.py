"""Record what a framework does: `python tests/golden/record.py pytorch|keras|optax|timm [--check]`.

Each case runs 300 updates in a closed loop: parameters → the problem's gradient in their own type →
the framework's step. With --check the files stay as they are, and the largest difference to them is
reported. Needs torch, keras with jax, optax, or timm; what is recorded does not depend on optlab.
"""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import problems, store
from golden.cases import CASES, Wave


def rate(case, t):
    """Return the learning rate that makes update t."""
    return float(case.rate * problems.RATE[t - 1])


def wave(value, t):
    """Return an option's value that makes update t."""
    if isinstance(value, Wave):
        return float(value.low + (value.high - value.low) * problems.WAVE[t - 1])
    return tuple(wave(v, t) for v in value) if isinstance(value, tuple) else value


def moves(value):
    """Return whether an option changes from update to update."""
    return wave(value, 1) != wave(value, 2)


def run(step, problem, dtype, observe=lambda t: None):
    """Return the parameters at the recorded updates, (updates, 16)."""
    params, recorded = problem.start(dtype), []
    for t in range(1, problems.UPDATES + 1):
        params = step(problem.gradient(params, t), params, t)
        observe(t)
        flat = problems.flatten(params)
        assert flat.dtype == dtype, flat.dtype
        assert np.isfinite(flat).all(), t
        if t in store.RECORDED:
            recorded.append(flat.copy())
    return np.stack(recorded)


class PyTorch:
    """torch.optim, with clipping from torch.nn.utils."""

    name = "pytorch"

    def __init__(self):
        import torch

        torch.set_num_threads(1)
        self.torch = torch
        self.version = torch.__version__.split("+")[0]
        self.rules = {
            "sgd": torch.optim.SGD,
            "adagrad": torch.optim.Adagrad,
            "rmsprop": torch.optim.RMSprop,
            "adam": torch.optim.Adam,
            "adamw": torch.optim.AdamW,
        }
        self.clips = {
            "clip_grad_norm": torch.nn.utils.clip_grad_norm_,
            "clip_grad_value": torch.nn.utils.clip_grad_value_,
        }
        self.states = {dtype: {} for dtype in store.DTYPES}

    def record(self, name, case, dtype):
        """Return (problems, updates, 16), and keep the states on the way."""
        states = []
        trajectories = []
        for problem in problems.PROBLEMS.values():
            seen = []
            trajectories.append(self.run(case, problem, dtype, seen))
            states.append(seen)
        if any(states[0][0].values()):
            kept = zip(problems.PROBLEMS, states, strict=True)
            self.states[dtype][name] = [s for p, s in kept if p in store.STATES_PROBLEMS]
        return np.stack(trajectories)

    def run(self, case, problem, dtype, states):
        torch = self.torch
        params = {
            k: torch.nn.Parameter(torch.tensor(np.asarray(p)))
            for k, p in problem.start(dtype).items()
        }
        options = {k: wave(v, 1) for k, v in case.options.items()}
        optimizer = self.rules[case.rule](list(params.values()), lr=rate(case, 1), **options)
        (group,) = optimizer.param_groups

        def step(gradient, _, t):
            group["lr"] = rate(case, t)
            group.update({k: wave(v, t) for k, v in case.options.items() if moves(v)})
            for k, p in params.items():
                # Of an objective that is to grow, the gradient points the other way.
                g = -gradient[k] if case.options.get("maximize") else gradient[k]
                p.grad = torch.tensor(np.asarray(g))
            if case.clip:
                self.clips[case.clip[0]](list(params.values()), case.clip[1])
            optimizer.step()
            return {k: p.detach().numpy() for k, p in params.items()}

        def observe(t):
            if t in store.STATES_RECORDED:
                state = optimizer.state_dict()["state"]
                states.append(
                    {
                        k: {
                            key: value.numpy().copy()
                            for key, value in state.get(i, {}).items()
                            if value is not None
                        }
                        for i, k in enumerate(params)
                    }
                )

        return run(step, problem, dtype, observe)


class Timm(PyTorch):
    """timm.optim, on PyTorch."""

    name = "timm"

    def __init__(self):
        super().__init__()
        import timm

        self.version = f"{timm.__version__} on torch {self.version}"
        self.rules = {"lars": timm.optim.Lars, "lamb": timm.optim.Lamb}


class Keras:
    """keras.optimizers on JAX, compiled as `Model.fit` does."""

    name = "keras"

    def __init__(self):
        os.environ["KERAS_BACKEND"] = "jax"
        import jax
        import keras

        self.jax, self.keras = jax, keras
        self.version = f"{keras.__version__} on jax {jax.__version__}"
        self.rules = {
            "sgd": keras.optimizers.SGD,
            "adagrad": keras.optimizers.Adagrad,
            "rmsprop": keras.optimizers.RMSprop,
            "adam": keras.optimizers.Adam,
            "adamw": keras.optimizers.AdamW,
            "lamb": keras.optimizers.Lamb,
        }

    def record(self, name, case, dtype):
        """Return (problems, updates, 16)."""
        with self.jax.enable_x64(dtype == "float64"):
            # The learning rate is a variable of this type.
            self.keras.config.set_floatx(dtype)
            return self.run(case, dtype)

    def run(self, case, dtype):
        optimizer = self.rules[case.rule](learning_rate=case.rate, **case.options)
        # Named and listed as in a module; all problems have the same shapes.
        optimizer.build(
            [
                self.keras.Variable(np.zeros(shape, dtype), dtype=dtype, name=k.replace(".", "_"))
                for k, shape in problems.SHAPES.items()
            ]
        )
        start = [np.asarray(v) for v in optimizer.variables]
        (position,) = (i for i, v in enumerate(optimizer.variables) if v is optimizer.learning_rate)
        apply = self.jax.jit(optimizer.stateless_apply)

        def trajectory(problem):
            state = start

            def step(gradient, params, t):
                nonlocal state
                state[position] = np.asarray(rate(case, t), dtype)
                names = problems.SHAPES
                new, state = apply(state, [gradient[k] for k in names], [params[k] for k in names])
                return dict(zip(names, map(np.asarray, new), strict=True))

            return run(step, problem, dtype)

        return np.stack([trajectory(problem) for problem in problems.PROBLEMS.values()])


class Optax:
    """optax, compiled; hyperparameters that move are injected."""

    name = "optax"

    def __init__(self):
        import jax
        import optax

        self.jax, self.optax = jax, optax
        self.version = f"{optax.__version__} on jax {jax.__version__}"

    def record(self, name, case, dtype):
        """Return (problems, updates, 16)."""
        with self.jax.enable_x64(dtype == "float64"):
            return self.run(case, dtype)

    def schedule(self, values):
        table = np.array(values)
        return lambda count: self.jax.numpy.asarray(table)[count]

    def run(self, case, dtype):
        jax, optax = self.jax, self.optax
        updates = range(1, problems.UPDATES + 1)
        options = {
            k: self.schedule([wave(v, t) for t in updates]) if moves(v) else v
            for k, v in case.options.items()
        }
        make = getattr(optax, case.rule)
        # Weight decay takes a schedule by itself.
        if any(moves(v) for k, v in case.options.items() if k != "weight_decay"):
            make = optax.inject_hyperparams(make)
        tx = make(self.schedule([rate(case, t) for t in updates]), **options)
        if case.clip:
            tx = optax.chain(getattr(optax, case.clip[0])(case.clip[1]), tx)

        @jax.jit
        def update(gradient, state, params):
            updates, state = tx.update(gradient, state, params)
            return optax.apply_updates(params, updates), state

        def trajectory(problem):
            state = tx.init(jax.tree.map(jax.numpy.asarray, problem.start(dtype)))

            def step(gradient, params, t):
                nonlocal state
                params, state = update(gradient, state, params)
                return jax.tree.map(np.asarray, params)

            return run(step, problem, dtype)

        return np.stack([trajectory(problem) for problem in problems.PROBLEMS.values()])


FRAMEWORKS = {"pytorch": PyTorch, "keras": Keras, "optax": Optax, "timm": Timm}


def check(recording, committed):
    """Report the largest difference to the file in the repository."""
    print(f"recorded with {committed.version}, now {recording.version}")
    missing = set(recording.cases) ^ set(committed.cases)
    if missing:
        sys.exit(f"only in one of the two: {', '.join(sorted(missing))}")
    for dtype in store.DTYPES:
        worst, case = max(
            (store.relative_error(recording.of(c, dtype), committed.of(c, dtype)), c)
            for c in recording.cases
        )
        print(f"{dtype}: largest difference {worst:.1e} of a leaf's largest element, in {case}")


def main():
    """Record, or check, one framework."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("framework", choices=FRAMEWORKS)
    parser.add_argument("--check", action="store_true", help="compare with the file, write nothing")
    arguments = parser.parse_args()
    framework = FRAMEWORKS[arguments.framework]()
    cases = CASES[arguments.framework]
    recording = store.Recording(
        version=framework.version,
        cases=tuple(cases),
        updates=store.RECORDED,
        trajectories={
            dtype: np.stack([framework.record(name, c, dtype) for name, c in cases.items()])
            for dtype in store.DTYPES
        },
    )
    if arguments.check:
        check(recording, store.load(arguments.framework))
    else:
        recording.save(arguments.framework)
    if arguments.framework == "pytorch":
        packed = store.pack_states(framework.states)
        if arguments.check:
            print(f"states: largest difference {store.states_error('pytorch', packed):.1e}")
        else:
            store.save_states("pytorch", packed)


if __name__ == "__main__":
    main()
