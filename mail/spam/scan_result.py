"""The result of the scanners for a message."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

MOST = 100  # symbols stored per message
LONGEST = 200  # characters of a name or description


@dataclass(frozen=True, slots=True)
class Symbol:
    """A rule of the spam scanner that matched, with its score."""

    name: str
    score: float
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """The merged result of the scanners that ran: `rspamd`, `clamd`."""

    sources: Sequence[str] = ()
    score: float | None = None  # None: no scanner gave a score
    required: float = 0.0  # score from which the scanner rejects
    action: str = ""  # action name of the scanner
    symbols: Sequence[Symbol] = field(default=())
    virus: str | None = None  # None: no virus found

    @property
    def forced(self) -> bool:
        """True if the scanner rejects the message although its score is below the threshold."""
        refuses = self.action in {"reject", "discard", "quarantine"}
        return self.score is not None and refuses and self.score < self.required

    def stored(self) -> dict[str, Any] | None:
        """Return the result as stored with the message, None if it says nothing."""
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
    """Return the MAX_SYMBOLS symbols with the highest absolute score."""
    return sorted(symbols, key=lambda one: (-abs(one.score), one.name))[:MOST]


def cut(text: str) -> str:
    """Return the text in one line of at most MAX_TEXT characters."""
    return "".join(c if c.isprintable() else " " for c in text[:LONGEST]).strip()
