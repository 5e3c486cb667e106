"""The files of recorded trajectories, and how far another trajectory is from them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from golden import problems

HERE = Path(__file__).parent
DTYPES = ("float64", "float32")
RECORDED = (1, 2, 7, 50, 100, 150, 200, 250, 300)
STATES_RECORDED = (50, 100)
STATES_PROBLEMS = ("coupled", "silent")


@dataclass(frozen=True, eq=False)
class Recording:
    """What one framework did.

    Attributes:
        version: of the framework.
        cases: the names of the cases.
        updates: the updates after which parameters were recorded.
        trajectories: for each dtype, (cases, problems, updates, 16).
    """

    version: str
    cases: tuple[str, ...]
    updates: tuple[int, ...]
    trajectories: dict[str, np.ndarray]

    def of(self, case, dtype):
        """Return the parameters of one case: leaves (problems, updates, …)."""
        return problems.unflatten(self.trajectories[dtype][self.cases.index(case)])

    def save(self, framework):
        """Write the framework's file, the same bytes for the same numbers."""
        np.savez_compressed(
            HERE / f"{framework}.npz",
            version=self.version,
            cases=np.array(self.cases),
            updates=np.array(self.updates),
            **self.trajectories,
        )


def load(framework):
    """Return what is recorded of a framework."""
    with np.load(HERE / f"{framework}.npz") as file:
        return Recording(
            version=str(file["version"]),
            cases=tuple(map(str, file["cases"])),
            updates=tuple(map(int, file["updates"])),
            trajectories={dtype: file[dtype] for dtype in DTYPES},
        )


def pack_states(states):
    """Return as arrays, by name, {dtype: {case: problems × updates of {parameter: {key: array}}}}.

    Every key of a case is a row of 16 coordinates; a scalar key such as `step` fills its leaf.
    """
    rows, arrays = [], {dtype: [] for dtype in DTYPES}
    for dtype, cases in states.items():
        keys = [(c, key) for c, of in cases.items() for key in of[0][0]["scale"]]
        assert not rows or rows == keys
        rows = keys
        for case, key in keys:
            arrays[dtype].append([[_row(leaves, key) for leaves in p] for p in cases[case]])
    return {
        "rows": np.array(["/".join(row) for row in rows]),
        "updates": np.array(STATES_RECORDED),
        "problems": np.array(STATES_PROBLEMS),
        **{dtype: np.array(a, dtype) for dtype, a in arrays.items()},
    }


def save_states(framework, packed):
    """Write packed states."""
    np.savez_compressed(HERE / f"{framework}_states.npz", **packed)


def _row(leaves, key):
    shapes = problems.SHAPES
    return problems.flatten({n: np.broadcast_to(leaves[n][key], shapes[n]) for n in shapes})


def load_states(framework):
    """Return {(case, problem, dtype, update): {parameter: {key: array}}}; `step` is a scalar."""
    states = {}
    with np.load(HERE / f"{framework}_states.npz") as file:
        index = [str(row).split("/") for row in file["rows"]]
        for dtype in DTYPES:
            for (case, key), array in zip(index, file[dtype], strict=True):
                for i, problem in enumerate(map(str, file["problems"])):
                    for j, update in enumerate(map(int, file["updates"])):
                        state = states.setdefault((case, problem, dtype, update), {})
                        for name, leaf in problems.unflatten(array[i, j]).items():
                            leaf = np.float32(leaf.flat[0]) if key == "step" else leaf
                            state.setdefault(name, {})[key] = np.asarray(leaf)
    return states


def states_error(framework, packed):
    """Return the worst difference of packed states to the file, relative to each row's largest."""
    worst = 0.0
    with np.load(HERE / f"{framework}_states.npz") as file:
        assert list(file["rows"]) == list(packed["rows"])
        for dtype in DTYPES:
            difference = np.abs(packed[dtype] - file[dtype]).max(axis=-1)
            worst = max(worst, np.max(difference / np.abs(file[dtype]).max(axis=-1)))
    return worst


def relative_error(got, want):
    """Return the worst difference relative to the largest element of its leaf.

    Args:
        got: leaves (problems, updates, …).
        want: the same.
    """
    return max(np.max(difference / largest) for difference, largest in _leaves(got, want))


def ulps(got, want, updates=1):
    """Return the worst difference in ulp of the largest element of its leaf.

    Args:
        got: leaves (problems, updates, …), float32.
        want: the same.
        updates: (updates,) how many had been made, to divide by.
    """
    return max(
        np.max(difference / np.spacing(largest.astype(np.float32)) / np.asarray(updates))
        for difference, largest in _leaves(got, want)
    )


def _leaves(got, want):
    """Yield for each leaf the largest difference and the largest element, (problems, updates)."""
    for name in problems.SHAPES:
        x, y = (np.asarray(tree[name], np.float64) for tree in (got, want))
        assert x.shape == y.shape
        axes = tuple(range(2, y.ndim))
        yield np.max(np.abs(x - y), axis=axes), np.max(np.abs(y), axis=axes)
