"""What scanners of ours have found in a message."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MOST = 100  # symbols of a message that are kept, the weightiest
LONGEST = 200  # characters of a name or description


@dataclass(frozen=True, slots=True)
class Symbol:
    """A rule of a spam filter that fits, and the points it gives."""

    name: str
    score: float
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """What was found by those that have looked: `rspamd`, `clamd`."""

    sources: Sequence[str] = ()
    score: float | None = None  # points; None: nobody has judged
    required: float = 0.0  # from where the filter itself would refuse
    action: str = ""  # what the filter would do, in its words
    symbols: Sequence[Symbol] = field(default=())
    virus: str | None = None  # its name

    @property
    def forced(self) -> bool:
        """Whether the filter refuses it whatever its points are."""
        refuses = self.action in {"reject", "discard", "quarantine"}
        return self.score is not None and refuses and self.score < self.required

    def stored(self) -> dict[str, Any] | None:
        """As it is kept with the message; None where nothing is said of it."""
        if self.score is None and self.virus is None:
            return None
        return {
            "score": self.score or 0.0,
            "required": self.required,
            "action": self.action,
            "symbols": [[one.name, one.score, one.description] for one in self.symbols],
            "virus": self.virus,
        }


def weightiest(symbols: Sequence[Symbol]) -> list[Symbol]:
    """As many as are kept: those that count most first."""
    return sorted(symbols, key=lambda one: (-abs(one.score), one.name))[:MOST]


def cut(text: str) -> str:
    """The text in one line, as long as it may be."""
    return "".join(c if c.isprintable() else " " for c in text[:LONGEST]).strip()
