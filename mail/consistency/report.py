"""The report of the consistency check."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

FindingValue = int | str | None
ReportProgress = Callable[[str, int, int | None], None]  # subject, checked, total

EXACT_INTEGER_LIMIT = 2**53  # JSON readers can round numbers from here on


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that is broken for an object such as "mailboxes/7"."""

    subject: str
    rule: str
    object: str
    expected: FindingValue
    found: FindingValue
    repairable: bool = False  # the expected value is known without a guess
    repaired: bool = False


@dataclass(slots=True)
class ConsistencyReport:
    """All findings, the number of checked objects, and figures that are no findings.

    In `checked_counts`, "objects" counts the object store.
    """

    findings: list[Finding] = field(default_factory=list)
    checked_counts: Counter[str] = field(default_factory=Counter)  # by table
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def unrepaired_findings(self) -> list[Finding]:
        """The findings that were not repaired."""
        return [finding for finding in self.findings if not finding.repaired]

    def to_json(self) -> dict[str, Any]:
        """The report in JSON values; integers that JSON readers could round are strings."""
        return {
            "whole": not self.unrepaired_findings,
            "findings": [
                {name: _json_value(value) for name, value in asdict(finding).items()}
                for finding in self.findings
            ],
            "looked": dict(self.checked_counts),
            "figures": self.figures,
        }


def _json_value(value: FindingValue) -> FindingValue:
    return str(value) if isinstance(value, int) and abs(value) >= EXACT_INTEGER_LIMIT else value
