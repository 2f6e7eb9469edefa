"""An error that the code of a root field can create."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class ErrorSite:
    """An error that a function creates."""

    code: str
    constraint: str  # of a VALIDATION error, else empty
    path: str  # from `input` or from the patch, empty if only the running code knows it
    condition: str  # the message, with names in italics for values; empty if it is computed
