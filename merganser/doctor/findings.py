"""The findings of `merganser doctor`."""

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """The result of a check: fine, could be better, or needs action."""

    OK = "ok"
    HINT = "hint"
    ACTION = "action"


class CheckName(StrEnum):
    """The name of each check: the subject of its findings, also if the check itself fails.

    Checks of ports, and that of the cold object store, put a word before it.
    """

    PROGRAMS = "programs"
    CLOCK = "clock"
    DATA_FOLDER = "data folder"
    SECRET = "secret"  # noqa: S105 - the name of a check
    DISK = "disk"
    DATABASE = "database"
    POSTGRES = "PostgreSQL"
    KEY_FILE = "key file"
    ARC_KEYS = "ARC keys"
    CERTIFICATE = "certificate"
    OBJECT_STORE = "object store"
    PORT = "port"
    DNS = "DNS"
    REVERSE_DNS = "reverse DNS"
    BACKUP = "backup"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check, with its finding and the suggested action."""

    subject: str
    verdict: Verdict
    found: str
    remedy: str = ""


def ok_finding(subject: str, detail: str) -> list[Finding]:
    """A list with one finding that all is well."""
    return [Finding(subject, Verdict.OK, detail)]


def hint_finding(subject: str, detail: str, next_step: str) -> list[Finding]:
    """A list with one finding that something works, but could be better."""
    return [Finding(subject, Verdict.HINT, detail, next_step)]


def action_finding(subject: str, detail: str, next_step: str) -> list[Finding]:
    """A list with one finding that something does not work, or not for long."""
    return [Finding(subject, Verdict.ACTION, detail, next_step)]
