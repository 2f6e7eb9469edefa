"""What the verifier has found."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

Value = int | str | None
Progress = Callable[[str, int, int | None], None]  # subject, objects looked at, of how many

EXACT = 2**53  # from here on a JSON reader may round a number


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that does not hold for an object, such as "mailboxes/7"."""

    subject: str
    rule: str
    object: str
    expected: Value
    found: Value
    repairable: bool = False  # from what is left, without a guess
    repaired: bool = False


@dataclass(slots=True)
class Report:
    """All differences, how many objects were looked at, and figures that are no differences."""

    findings: list[Finding] = field(default_factory=list)
    looked: Counter[str] = field(default_factory=Counter)  # by table; "objects": in the store
    figures: dict[str, int] = field(default_factory=dict)

    @property
    def left(self) -> list[Finding]:
        """The differences that were not repaired."""
        return [finding for finding in self.findings if not finding.repaired]

    def as_json(self) -> dict[str, Any]:
        """The report in plain values; numbers that JSON readers would round are texts."""
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
