"""The result of the scanners for a message."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MAX_SYMBOLS = 100  # symbols stored per message
MAX_TEXT = 200  # characters of a name or description


@dataclass(frozen=True, slots=True)
class SpamScanSymbol:
    """A rule of the spam scanner that matched, with its score."""

    name: str
    score: float
    description: str | None = None


@dataclass(frozen=True, slots=True)
class ScanResult:
    """The merged result of the scanners that ran: `rspamd`, `clamd`."""

    scanner_names: Sequence[str] = ()
    score: float | None = None  # None: no scanner gave a score
    reject_score: float = 0.0  # score from which the scanner rejects
    action: str = ""  # action name of the scanner
    symbols: Sequence[SpamScanSymbol] = field(default=())
    virus_name: str | None = None  # None: no virus found

    @property
    def is_forced_reject(self) -> bool:
        """True if the scanner rejects the message although its score is below the threshold."""
        refuses = self.action in {"reject", "discard", "quarantine"}
        return self.score is not None and refuses and self.score < self.reject_score

    def json_to_store(self) -> dict[str, Any] | None:
        """Return the result as stored with the message, None if it says nothing."""
        if self.score is None and self.virus_name is None:
            return None
        return {
            "score": self.score or 0.0,
            "required": self.reject_score,
            "action": self.action,
            "symbols": [[symbol.name, symbol.score, symbol.description] for symbol in self.symbols],
            "virus": self.virus_name,
        }


def scan_result_from_record(record: Mapping[str, Any]) -> ScanResult:
    """Return the result of a record that `dataclasses.asdict` made."""
    symbols = [SpamScanSymbol(**symbol) for symbol in record["symbols"]]
    values: dict[str, Any] = {**record, "symbols": symbols}
    return ScanResult(**values)


def weightiest_symbols(symbols: Sequence[SpamScanSymbol]) -> list[SpamScanSymbol]:
    """Return the MAX_SYMBOLS symbols with the highest absolute score."""
    return sorted(symbols, key=lambda item: (-abs(item.score), item.name))[:MAX_SYMBOLS]


def single_line(text: str) -> str:
    """Return the text in one line of at most MAX_TEXT characters."""
    return "".join(c if c.isprintable() else " " for c in text[:MAX_TEXT]).strip()
