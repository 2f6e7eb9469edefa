"""How a check of the doctor comes out."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """How a check came out."""

    OK = "ok"
    HINT = "hint"
    ACTION = "action"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check says, and what to do."""

    subject: str
    verdict: Verdict
    found: str
    todo: str = ""


def ok(subject: str, found: str) -> list[Finding]:
    """All is well."""
    return [Finding(subject, Verdict.OK, found)]


def hint(subject: str, found: str, todo: str) -> list[Finding]:
    """It works, but could be better."""
    return [Finding(subject, Verdict.HINT, found, todo)]


def action(subject: str, found: str, todo: str) -> list[Finding]:
    """It does not work, or not for long."""
    return [Finding(subject, Verdict.ACTION, found, todo)]
