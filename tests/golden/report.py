"""Print how well optlab's dialects replay the frameworks: `python tests/golden/report.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from golden import store
from golden.cases import CASES
from golden.replay import replay


def measure(framework, recording, case, dtype):
    """Return the worst difference: relative in float64; in float32 in ulp, an update and in all."""
    got = replay(framework, CASES[framework][case].rule, dtype)[case]
    want = recording.of(case, dtype)
    if dtype == "float64":
        return (store.relative_error(got, want),)
    return store.ulps(got, want, recording.updates), store.ulps(got, want)


def main(frameworks):
    """Print a line for each case, and the worst of each framework."""
    columns = "of the largest element", "ulp an update", "ulp in 300 updates"
    print(f"{'':42} {'float64':>8} {'float32, ulp':>16}")
    for framework in frameworks or CASES:
        recording, errors = store.load(framework), {}
        for case in recording.cases:
            errors[case] = [
                error for d in store.DTYPES for error in measure(framework, recording, case, d)
            ]
            print("  {:40} {:8.1e} {:8.2f} {:8.1f}".format(case, *errors[case]))
        print(f"{framework} {recording.version}, {len(recording.cases)} cases; at worst")
        for i, column in enumerate(columns):
            case = max(errors, key=lambda c, i=i: errors[c][i])
            print(f"  {store.DTYPES[i > 0]}: {errors[case][i]:.2g} {column}, in {case}")


if __name__ == "__main__":
    main(sys.argv[1:])
