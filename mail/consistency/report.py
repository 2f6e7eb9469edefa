"""The report of the consistency check."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

Value = int | str | None
Progress = Callable[[str, int, int | None], None]  # subject, checked, total

EXACT = 2**53  # JSON readers can round numbers from here on


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that is broken for an object such as "mailboxes/7"."""

    subject: str
    rule: str
    object: str
    expected: Value
    found: Value
    repairable: bool = False  # the expected value is known without a guess
    repaired: bool = False


@dataclass(slots=True)
class Report:
    """All findings, the number of checked objects, and figures that are no findings.

    In `checked_counts`, "objects" counts the object store.
    """

    findings: list[Finding] = field(default_factory=list)
    looked: Counter[str] = field(default_factory=Counter)  # by table
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def left(self) -> list[Finding]:
        """The findings that were not repaired."""
        return [finding for finding in self.findings if not finding.repaired]

    def as_json(self) -> dict[str, Any]:
        """The report in JSON values; integers that JSON readers could round are strings."""
        return {
            "whole": not self.left,
            "findings": [
                {name: _exact(value) for name, value in asdict(finding).items()}
                for finding in self.findings
            ],
            "looked": dict(self.looked),
            "figures": self.figures,
        }


def _exact(value: Value) -> Value:
    return str(value) if isinstance(value, int) and abs(value) >= EXACT else value
