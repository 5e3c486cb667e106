"""`Record`: the trials that have ended."""

from collections.abc import Callable, Iterable, Sequence

from optlab.lab.sweeps._store import Store
from optlab.lab.sweeps._trial import Trial


class Record:
    """The trials that have ended, in memory and in a store; new ones are passed to callbacks."""

    def __init__(self, store: Store, callbacks: Sequence[Callable[[Trial], None]]):
        self.store, self._callbacks = store, callbacks
        self.ended = {trial.number: trial for trial in store.trials()}

    def add(self, trials: Iterable[Trial]) -> None:
        """Store the new ones among some trials, and call the callbacks with them."""
        new = [trial for trial in trials if trial.number not in self.ended]
        self.store.add(new)
        self.ended |= {trial.number: trial for trial in new}
        for trial in new:
            for callback in self._callbacks:
                callback(trial)
