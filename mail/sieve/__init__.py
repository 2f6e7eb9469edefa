"""Sieve (RFC 5228).

Scripts are parsed, compiled and run on a message. The result is a plan; nothing is stored or sent
here.
"""

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
from mail.sieve.compiler import checked, compiled
from mail.sieve.errors import Problem, RunError, SieveError
from mail.sieve.execution.interpreter import Circumstances, Tests, run
from mail.sieve.execution.signatures import Include, Program
from mail.sieve.extensions.editheader import edited
from mail.sieve.message import Envelope, Letter, Message
from mail.sieve.registry import EXTENSIONS
from mail.sieve.syntax.parser import parse
from mail.sieve.syntax.printer import printed

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
