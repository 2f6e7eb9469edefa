"""Tests of annotations of mailboxes and of the server (RFC 5490, RFC 5464)."""

from mail.mailboxes.paths import spelled
from mail.sieve.execution import value_matching
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import MATCH, Call, Given, Kind, Signature


def _value(run: Run, call: Call, name: str) -> str | None:
    """Return the value of an annotation, None if it is not set."""
    mailbox = spelled(run.text(call, "mailbox")) if call.has("mailbox") else ""
    return run.circumstances.metadata.get((mailbox, name.lower()))


def _metadata(run: Run, call: Call) -> bool:
    value = _value(run, call, run.text(call, "annotation"))
    return value is not None and value_matching.matched(run, call, [value], run.texts(call, "keys"))


def _metadataexists(run: Run, call: Call) -> bool:
    return all(_value(run, call, name) is not None for name in run.texts(call, "annotations"))


_MAILBOX, _ANNOTATION = Given("mailbox"), Given("annotation")
_ANNOTATIONS = Given("annotations", Kind.STRINGS)
_KEYS = Given("keys", Kind.STRINGS)
TESTS = (
    Signature(
        "metadata",
        _metadata,
        (_MAILBOX, _ANNOTATION, _KEYS),
        MATCH,
        extension="mboxmetadata",
        check=value_matching.check,
    ),
    Signature(
        "metadataexists", _metadataexists, (_MAILBOX, _ANNOTATIONS), extension="mboxmetadata"
    ),
    Signature(
        "servermetadata",
        _metadata,
        (_ANNOTATION, _KEYS),
        MATCH,
        extension="servermetadata",
        check=value_matching.check,
    ),
    Signature("servermetadataexists", _metadataexists, (_ANNOTATIONS,), extension="servermetadata"),
)
