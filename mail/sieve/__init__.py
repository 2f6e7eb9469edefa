"""Sieve (RFC 5228): scripts are read, checked, and run on a message; what comes out is a plan."""

from mail.sieve.actions import (
    Action,
    AddHeader,
    Copy,
    DeleteHeader,
    Discard,
    Edit,
    FileInto,
    Keep,
    Notify,
    Plan,
    Redirect,
    Reject,
    Remembered,
    Traced,
    Vacation,
)
from mail.sieve.checking import checked, compiled
from mail.sieve.editing import edited
from mail.sieve.errors import Problem, RunError, SieveError
from mail.sieve.families import EXTENSIONS
from mail.sieve.message import Envelope, Letter, Message
from mail.sieve.parser import parse
from mail.sieve.printing import printed
from mail.sieve.running import Circumstances, Tests, run
from mail.sieve.signatures import Include, Program

__all__ = [
    "EXTENSIONS",
    "Action",
    "AddHeader",
    "Circumstances",
    "Copy",
    "DeleteHeader",
    "Discard",
    "Edit",
    "Envelope",
    "FileInto",
    "Include",
    "Keep",
    "Letter",
    "Message",
    "Notify",
    "Plan",
    "Problem",
    "Program",
    "Redirect",
    "Reject",
    "Remembered",
    "RunError",
    "SieveError",
    "Tests",
    "Traced",
    "Vacation",
    "checked",
    "compiled",
    "edited",
    "parse",
    "printed",
    "run",
]
