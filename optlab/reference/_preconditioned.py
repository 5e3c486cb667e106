"""Rules that precondition matrices: SOAP, Shampoo.

An array of two axes is a matrix G; one of more axes is a stack of matrices, each treated by itself;
fewer axes are a vector. The left side of a matrix belongs to its rows, the right to its columns.

    SOAP    L ← β₂L + (1−β₂)GGᵀ      R ← β₂R + (1−β₂)GᵀG
            G′ = Q_LᵀGQ_R            the columns of Q are (nearly) the eigenvectors of L and of R
            m ← β₁m + (1−β₁)G′       v ← β₂v + (1−β₂)G′²
            d = √(1−β₂ᵗ)/(1−β₁ᵗ) · Q_L(m/(√v + ε))Q_Rᵀ

m is kept rotated, and is carried over where the bases change. A vector has no bases: G′ = g.

    Shampoo L, R as above, or sums   L̂ = L/(1−β₂ᵗ), R̂ = R/(1−β₂ᵗ); sums as they are
            m ← β₁m + (1−β₁)g        m̂ = m/(1−β₁ᵗ)
            P = (L̂ + εI)^−p · m̂ · (R̂ + εI)^−p
            d = P·‖a‖/‖P‖            a is the step of another rule, d = a for a vector
      Adam      v ← β₂v + (1−β₂)g²   a = m̂/(√(v/(1−β₂ᵗ)) + ε_a)
      RMSProp   the same v           a = m̂/(√v + ε_a)
      AdaGrad   v ← v + g²           a = m̂/(√v + ε_a)
      SGD                            a = m̂
      none                           d = P, Adam's a for a vector
      momentum  b ← μb + d           d′ = b   (Nesterov: d′ = μb + d)

p is 1/(2k) with k preconditioned sides unless given. ε is a share of the largest eigenvalue or an
absolute number; where an eigenvalue plus ε is 0, its power is taken for 0.

Conventions chosen:
- The first update computes the bases by eigendecomposition, columns by falling eigenvalue, and
  moves nothing; t counts from the second one. Later the bases follow after the step, at the updates
  1 + k, 1 + 2k, …
- They follow by one orthogonal iteration: the columns of Q are ordered by diag(QᵀLQ), falling, the
  entries of v alike, and Q becomes the orthogonal factor of LQ. v is not rotated.
- ε is added to √v before the correction of bias (ε-hat in Kingma & Ba).
- Where β₁ and β₂ follow a schedule, βᵗ stands for the product of their values since the second
  update.
- Decay is decoupled and rests at the first update. (The authors' code decays after the step, which
  differs by α²λd.)

- Shampoo's roots are new at the updates s, s + k, …; before update s, d = a (m̂ without grafting).
- Lengths ‖·‖ are those of the blocks of a matrix.

References: Vyas et al., ICLR (2025), and the authors' code for the order of things, SOAP. Gupta,
Koren, Singer, ICML (2018), Anil et al., arXiv:2002.09018 (2020), Shi et al., arXiv:2309.06497
(2023), Shampoo.
"""

import numpy as np

from ._optimizers import _float64, _mean_log


def scale_by_soap(
    g,
    state,
    t,
    *,
    b1=0.95,
    b2=0.95,
    eps=1e-8,
    precondition_frequency=10,
    max_precondition_dim=10_000,
    block_size=None,
    one_sided=False,
    refresh="qr",
    refresh_before=False,
    correct_bias=True,
    normalize=False,
):
    """Divide by the root of the average squared gradient, in the eigenbasis of GGᵀ and GᵀG.

    Args:
        g: gradient: a vector, a matrix or a stack of matrices.
        state: {} before the first update.
        t: number of this update, from 1.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε, ≥ 0.
        precondition_frequency: k ≥ 1.
        max_precondition_dim: the longest side that is rotated.
        block_size: the longest side of a block, of sides that are rotated; None for no blocks.
        one_sided: rotate the shorter side alone, of two equal ones the rows.
        refresh: "qr" for orthogonal iteration, "eigh" for eigenvectors with v as it is.
        refresh_before: let L, R and the bases take G in before the step; the first update moves.
        correct_bias: correct m and v for their bias to 0.
        normalize: divide the step of each matrix by its root mean square.

    Returns:
        (direction, state).
    """
    g = _float64(g)
    idle = 0 if refresh_before else 1
    new_state, scale = {}, 1.0
    if correct_bias and t > idle:
        for name, beta in (("mean_log_b1", b1), ("mean_log_b2", b2)):
            new_state[name] = _mean_log(beta, state.get(name), t - idle)
        averaged = [-np.expm1((t - idle) * new_state[f"mean_log_{b}"]) for b in ("b1", "b2")]
        scale = np.sqrt(averaged[1]) / averaged[0]

    def step(block, old, sides):
        mu, nu = old.get("mu", np.zeros_like(block)), old.get("nu", np.zeros_like(block))
        factors = {
            s: np.zeros((n, n)) for s, n in zip("LR", block.shape, strict=False) if s in sides
        }
        factors = old.get("factors", factors)
        bases = old.get("bases", {side: np.eye(len(factors[side])) for side in factors})

        def refreshed(mu, nu, factors, bases):
            squares = {"L": lambda: block @ block.T, "R": lambda: block.T @ block}
            factors = {s: b2 * f + (1 - b2) * squares[s]() for s, f in factors.items()}
            if (t - 1) % precondition_frequency:
                return mu, nu, factors, bases
            new = {}
            for side, factor in factors.items():
                if t == 1 or refresh == "eigh":
                    new[side] = np.linalg.eigh(factor)[1][:, ::-1]
                    continue
                basis = bases[side]
                order = np.argsort(-np.diag(basis.T @ factor @ basis), kind="stable")
                nu = nu[order] if side == "L" else nu[:, order]
                new[side] = np.linalg.qr(factor @ basis[:, order])[0]
            return _into(_out_of(mu, bases), new), nu, factors, new

        if refresh_before:
            mu, nu, factors, bases = refreshed(mu, nu, factors, bases)
        direction = np.zeros_like(block)
        if t > idle:
            rotated = _into(block, bases)
            mu = b1 * mu + (1 - b1) * rotated
            nu = b2 * nu + (1 - b2) * rotated**2
            direction = scale * _out_of(mu / (np.sqrt(nu) + eps), bases)
        if not refresh_before:
            mu, nu, factors, bases = refreshed(mu, nu, factors, bases)
        return direction, {"mu": mu, "nu": nu, "factors": factors, "bases": bases}

    plan = max_precondition_dim, block_size, one_sided
    direction, new_state["blocks"] = _by_block(step, g, state.get("blocks"), *plan)
    if normalize:
        axes, count = ((-2, -1), np.prod(g.shape[-2:])) if g.ndim > 1 else (None, g.size)
        squares = np.sum(direction**2, axis=axes, keepdims=True)
        direction = direction / (np.sqrt(squares / max(count, 1)) + 1e-30)
    return direction, new_state


def soap(p, g, state, t, *, learning_rate, weight_decay=0.01, **options):
    """Step by SOAP: θ ← θ − α(d + λθ), at the idle first update not at all.

    Args:
        p: parameter θ.
        g: gradient, of the parameter's shape.
        state: that of `scale_by_soap`; {} before the first update.
        t: number of this update, from 1.
        learning_rate: α, ≥ 0.
        weight_decay: λ, ≥ 0.
        options: those of `scale_by_soap`.

    Returns:
        (new parameter, state).
    """
    p = _float64(p)
    direction, state = scale_by_soap(g, state, t, **options)
    if t > 1 or options.get("refresh_before"):
        direction = direction + weight_decay * p
    return p - learning_rate * direction, state


def scale_by_shampoo(
    g,
    state,
    t,
    *,
    b1=0.9,
    b2=0.999,
    eps=1e-6,
    grafting="adam",
    graft_eps=1e-8,
    eps_place="relative",
    exponent=None,
    accumulate=False,
    momentum=None,
    nesterov=False,
    precondition_frequency=10,
    start_step=1,
    block_size=1024,
    max_precondition_dim=10_000,
    one_sided=False,
):
    """Multiply the average gradient by roots of the averages of GGᵀ and GᵀG.

    Args:
        g: gradient: a vector, a matrix or a stack of matrices.
        state: {} before the first update.
        t: number of this update, from 1.
        b1: β₁, in [0, 1).
        b2: β₂, in [0, 1).
        eps: ε, ≥ 0.
        grafting: "adam", "rmsprop", "adagrad", "sgd" or None: what a is.
        graft_eps: ε_a, ≥ 0.
        eps_place: "relative" to the largest eigenvalue, or "absolute".
        exponent: p, > 0; None for 1/(2k).
        accumulate: L and R are sums.
        momentum: μ, in [0, 1); None for none.
        nesterov: look ahead along the momentum.
        precondition_frequency: k ≥ 1.
        start_step: s ≥ 1.
        block_size: the longest side of a block, of preconditioned sides; None for no blocks.
        max_precondition_dim: the longest side that is preconditioned.
        one_sided: precondition the shorter side alone, of two equal ones the rows.

    Returns:
        (direction, state).
    """
    g = _float64(g)
    new_state = {}
    for name, beta in (("mean_log_b1", b1), ("mean_log_b2", b2)):
        new_state[name] = _mean_log(beta, state.get(name), t)
    weights = [-np.expm1(t * new_state[f"mean_log_{b}"]) for b in ("b1", "b2")]  # 1 − βᵗ

    def step(block, old, sides):
        mu = b1 * old.get("mu", 0.0) + (1 - b1) * block
        m_hat, new = mu / weights[0], {"mu": mu}
        kind = "adam" if grafting is None and block.ndim < 2 else grafting
        a = m_hat
        if kind in ("adam", "rmsprop", "adagrad"):
            nu = old.get("nu", 0.0)
            nu = nu + block**2 if kind == "adagrad" else b2 * nu + (1 - b2) * block**2
            a = m_hat / (np.sqrt(nu / weights[1] if kind == "adam" else nu) + graft_eps)
            new["nu"] = nu
        if block.ndim < 2:
            return a, new
        squares = {"L": lambda: block @ block.T, "R": lambda: block.T @ block}
        new["factors"], roots = {}, dict(old.get("roots", {}))
        for side in sides:
            square, before = squares[side](), old.get("factors", {}).get(side, 0.0)
            factor = before + square if accumulate else b2 * before + (1 - b2) * square
            new["factors"][side] = factor
            if t >= start_step and (t - start_step) % precondition_frequency == 0:
                power = -(exponent or 0.5 / len(sides))
                unbiased = factor if accumulate else factor / weights[1]
                roots[side] = _power(unbiased, eps, eps_place, power)
        new["roots"] = roots
        if t < start_step:
            return a, new
        d = roots["L"] @ m_hat if "L" in sides else m_hat
        d = d @ roots["R"] if "R" in sides else d
        length = np.linalg.norm(d)
        if grafting is not None and length > 0:
            d = d * (np.linalg.norm(a) / length)
        return d, new

    plan = max_precondition_dim, block_size, one_sided
    direction, new_state["blocks"] = _by_block(step, g, state.get("blocks"), *plan)
    if momentum is not None:
        velocity = momentum * state.get("velocity", 0.0) + direction
        direction = momentum * velocity + direction if nesterov else velocity
        new_state["velocity"] = velocity
    return direction, new_state


def shampoo(p, g, state, t, *, learning_rate, weight_decay=0.01, **options):
    """Step by Shampoo: θ ← θ − α(d + λθ).

    Args:
        p: parameter θ.
        g: gradient, of the parameter's shape.
        state: that of `scale_by_shampoo`; {} before the first update.
        t: number of this update, from 1.
        learning_rate: α, ≥ 0.
        weight_decay: λ, ≥ 0.
        options: those of `scale_by_shampoo`.

    Returns:
        (new parameter, state).
    """
    p = _float64(p)
    direction, state = scale_by_shampoo(g, state, t, **options)
    return p - learning_rate * (direction + weight_decay * p), state


def _power(a, eps, eps_place, exponent):
    """Return the power of A + εI; 0 in the place of powers of 0."""
    values, vectors = np.linalg.eigh(a)
    values = np.maximum(values, 0)
    values = values + (eps * values.max(initial=0) if eps_place == "relative" else eps)
    powers = np.where(values > 0, np.where(values > 0, values, 1) ** exponent, 0)
    return (vectors * powers) @ vectors.T


def _by_block(step, g, states, max_dim, block_size, one_sided):
    """Apply (block, state, sides) → (direction, state) to the blocks of all matrices of an array.

    `sides` is "", "L", "R" or "LR". Sides that are not among them are not cut.
    """
    if g.ndim < 2:
        direction, state = step(g, states[0] if states else {}, "")
        return direction, [state]
    rows, columns = g.shape[-2:]
    left, right = rows <= max_dim, columns <= max_dim
    if one_sided:
        left, right = left and rows <= columns, right and columns < rows
    height = max(1, min(block_size, rows) if block_size and left else rows)
    width = max(1, min(block_size, columns) if block_size and right else columns)
    direction, new_states = np.zeros_like(g), []
    for index in np.ndindex(g.shape[:-2]):
        for top in range(0, rows, height):
            for start in range(0, columns, width):
                where = (*index, slice(top, top + height), slice(start, start + width))
                old = states[len(new_states)] if states else {}
                direction[where], new = step(g[where], old, "L" * left + "R" * right)
                new_states.append(new)
    return direction, new_states


def _into(x, bases):
    x = bases["L"].T @ x if "L" in bases else x
    return x @ bases["R"] if "R" in bases else x


def _out_of(x, bases):
    x = bases["L"] @ x if "L" in bases else x
    return x @ bases["R"].T if "R" in bases else x
