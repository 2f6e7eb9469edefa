"""Tests of annotations of mailboxes and of the server (RFC 5490, RFC 5464)."""

from mail.mailboxes.paths import canonical_path
from mail.sieve.execution import value_matching
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    MATCH_OPTIONS,
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
)


def _annotation_value_or_none(run: ScriptRun, call: SieveCall, name: str) -> str | None:
    """Return the value of an annotation, None if it is not set."""
    mailbox = (
        canonical_path(run.expanded_argument_or_empty(call, "mailbox"))
        if call.has_argument("mailbox")
        else ""
    )
    return run.environment.metadata.get((mailbox, name.lower()))


def _evaluate_metadata(run: ScriptRun, call: SieveCall) -> bool:
    value = _annotation_value_or_none(run, call, run.expanded_argument_or_empty(call, "annotation"))
    return value is not None and value_matching.any_value_matches(
        run, call, [value], run.strings_argument(call, "keys")
    )


def _evaluate_metadataexists(run: ScriptRun, call: SieveCall) -> bool:
    return all(
        _annotation_value_or_none(run, call, name) is not None
        for name in run.strings_argument(call, "annotations")
    )


_MAILBOX, _ANNOTATION = PositionalArgument("mailbox"), PositionalArgument("annotation")
_ANNOTATIONS = PositionalArgument("annotations", ArgumentType.STRINGS)
_KEYS = PositionalArgument("keys", ArgumentType.STRINGS)
TESTS = (
    CallSignature(
        "metadata",
        _evaluate_metadata,
        (_MAILBOX, _ANNOTATION, _KEYS),
        MATCH_OPTIONS,
        extension="mboxmetadata",
        find_problem=value_matching.match_tags_problem,
    ),
    CallSignature(
        "metadataexists",
        _evaluate_metadataexists,
        (_MAILBOX, _ANNOTATIONS),
        extension="mboxmetadata",
    ),
    CallSignature(
        "servermetadata",
        _evaluate_metadata,
        (_ANNOTATION, _KEYS),
        MATCH_OPTIONS,
        extension="servermetadata",
        find_problem=value_matching.match_tags_problem,
    ),
    CallSignature(
        "servermetadataexists",
        _evaluate_metadataexists,
        (_ANNOTATIONS,),
        extension="servermetadata",
    ),
)
