"""Sieve (RFC 5228).

Scripts are parsed, compiled and run on a message. The result is a plan; nothing is stored or sent
here.
"""

from mail.sieve.actions import (
    Action,
    AddHeader,
    DeleteHeader,
    Discard,
    Edit,
    FccCopy,
    FileInto,
    Keep,
    MailNotification,
    Redirect,
    Reject,
    ScriptTraceStep,
    SievePlan,
    TrackedDuplicate,
    VacationReply,
)
from mail.sieve.compiler import compile_script, compile_tree
from mail.sieve.errors import ScriptProblem, SieveError, SieveRunError
from mail.sieve.execution.interpreter import SieveEnvironment, SieveTests, run_script
from mail.sieve.execution.signatures import IncludedScript, SieveProgram
from mail.sieve.extensions.editheader import edit_header_block
from mail.sieve.message import ParsedSieveMessage, SieveEnvelope, SieveMessage
from mail.sieve.registry import EXTENSIONS
from mail.sieve.syntax.parser import parse_script
from mail.sieve.syntax.printer import print_script

__all__ = [
    "EXTENSIONS",
    "Action",
    "AddHeader",
    "DeleteHeader",
    "Discard",
    "Edit",
    "FccCopy",
    "FileInto",
    "IncludedScript",
    "Keep",
    "MailNotification",
    "ParsedSieveMessage",
    "Redirect",
    "Reject",
    "ScriptProblem",
    "ScriptTraceStep",
    "SieveEnvelope",
    "SieveEnvironment",
    "SieveError",
    "SieveMessage",
    "SievePlan",
    "SieveProgram",
    "SieveRunError",
    "SieveTests",
    "TrackedDuplicate",
    "VacationReply",
    "compile_script",
    "compile_tree",
    "edit_header_block",
    "parse_script",
    "print_script",
    "run_script",
]
