"""The error of data that do not come as a run needs them, and who reports it."""

from dataclasses import dataclass
from typing import NoReturn


class DataError(ValueError):
    """A loader yields too few batches, other batches than at first, none at all, or an error.

    It is raised at the batch that it is about. All batches before that one have been delivered, so
    that the run can write its checkpoint before it passes the error on.
    """


@dataclass(frozen=True)
class Source:
    """Who reads whose loader.

    Attributes:
        who: the public name that errors begin with.
        text: the loader, as in "the loader of task 'digits'".
    """

    who: str
    text: str

    def fail(
        self, required: str, got: str, remedy: str = "", *, cause: Exception | None = None
    ) -> NoReturn:
        """Raise the DataError `who: the loader required, got …; remedy`, with its cause."""
        end = f"; {remedy}" if remedy else ""
        raise DataError(f"{self.who}: {self.text} {required}, got {got}{end}") from cause
