"""Run optlab's dialects over what the frameworks were recorded on."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

from golden import problems, store
from golden.cases import CASES, Wave


def _schedule(values):
    def schedule(count):
        # Within the trace, so that it has the precision in force there.
        return jnp.asarray(values)[count]

    return schedule


def _argument(value):
    """Return an option with a schedule in place of what moves."""
    if isinstance(value, Wave):
        return _schedule(value.low + (value.high - value.low) * problems.WAVE)
    return tuple(map(_argument, value)) if isinstance(value, tuple) else value


def transformation(framework, case):
    """Return the optimizer of a case, clipping included, in optlab's dialect."""
    dialect = importlib.import_module(f"optlab.dialects.{framework}")
    options = {k: _argument(v) for k, v in case.options.items()}
    tx = getattr(dialect, case.rule)(_schedule(case.rate * problems.RATE), **options)
    if case.clip:
        name, bound = case.clip
        tx = optax.chain(getattr(dialect, name)(bound), tx)
    return tx


@functools.cache
def replay(framework, rule, dtype):
    """Return the parameters of all cases of a rule: {case: leaves (problems, recorded updates, …)}.

    Cases share one compiled update, which is far quicker than one each. The problems run side by
    side, mapped over, so that what an optimizer computes of a whole tree (a global norm) is each
    problem's own.
    """
    cases = {name: case for name, case in CASES[framework].items() if case.rule == rule}
    problem, recorded = problems.stacked(), []
    # In double the formulas are in question, not the digits: a compiler that hurries will do.
    hurry = {"xla_backend_optimization_level": 0} if dtype == "float64" else None
    with jax.enable_x64(dtype == "float64"):
        txs = [transformation(framework, case) for case in cases.values()]
        # Of an objective that is to grow, the gradient points the other way.
        signs = [-1 if case.options.get("maximize") else 1 for case in cases.values()]

        @functools.partial(jax.jit, compiler_options=hurry)
        @functools.partial(jax.vmap, in_axes=(1, 0, 1), out_axes=(1, 0))
        def update(gradients, states, params):
            new = []
            for i, (tx, sign, state) in enumerate(zip(txs, signs, states, strict=True)):
                p = {k: leaf[i] for k, leaf in params.items()}
                g = {k: sign * leaf[i] for k, leaf in gradients.items()}
                u, state = tx.update(g, state, p)
                new.append((optax.apply_updates(p, u), state))
            leaves, states = zip(*new, strict=True)
            return jax.tree.map(lambda *x: jnp.stack(x), *leaves), states

        start = problem.start(dtype)
        states = tuple(jax.vmap(tx.init)(start) for tx in txs)
        params = {k: np.stack([p] * len(cases)) for k, p in start.items()}
        for t in range(1, problems.UPDATES + 1):
            params, states = update(problem.gradient(params, t), states, params)
            params = {k: np.asarray(p) for k, p in params.items()}
            assert all(p.dtype == dtype for p in params.values())
            if t in store.RECORDED:
                recorded.append(params)
    leaves = {k: np.stack([p[k] for p in recorded], axis=2) for k in problems.SHAPES}
    return {name: {k: leaf[i] for k, leaf in leaves.items()} for i, name in enumerate(cases)}
