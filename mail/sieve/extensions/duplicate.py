"""The test `duplicate`: was a message with this id seen before (RFC 7352)?"""

from hashlib import sha256

from mail.mime import parse_message_ids
from mail.sieve import limits
from mail.sieve.actions import TrackedDuplicate
from mail.sieve.execution import comparators
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import ArgumentType, CallSignature, SieveCall, TagOption
from mail.sieve.extensions.core_commands import FIELD_NAME

_DAY = 86_400
_DEFAULT_SECONDS, _MAX_SECONDS = 7 * _DAY, 90 * _DAY  # how long an id is stored


def _evaluate_duplicate(run: ScriptRun, call: SieveCall) -> bool:
    unique = _unique_id_or_empty(run, call)
    if not unique:
        return False
    kind = "uniqueid" if call.has_argument("uniqueid") else "header"
    words = (run.expanded_argument_or_empty(call, "handle"), kind, unique)
    key = sha256("\0".join(words).encode("utf-8", "replace")).hexdigest()
    run.checked_duplicate_keys.add(key)
    if len(run.checked_duplicate_keys) > limits.MAX_DUPLICATE_TESTS:
        raise run.error_at(
            call, f"A script can test at most {limits.MAX_DUPLICATE_TESTS} IDs for duplicates."
        )
    seen = key in run.environment.seen
    if not seen or call.has_argument("last"):
        seconds = min(call.number_argument("seconds", _DEFAULT_SECONDS), _MAX_SECONDS)
        others = [duplicate for duplicate in run.tracked_duplicates if duplicate.key != key]
        run.tracked_duplicates = [*others, TrackedDuplicate(key, seconds)]
    return seen


def _unique_id_or_empty(run: ScriptRun, call: SieveCall) -> str:
    """Return the id of the message that the test compares, "" if it has none."""
    if call.has_argument("uniqueid"):
        return run.expanded_argument_or_empty(call, "uniqueid")
    name = (
        run.expanded_argument_or_empty(call, "header")
        if call.has_argument("header")
        else "message-id"
    )
    id_fields = run.fields_named(name)
    if not id_fields:
        return ""
    run.count_steps(call, comparators.comparison_steps(len(id_fields[0].value), 8))
    if not call.has_argument("header"):
        return next(iter(parse_message_ids(id_fields[0].value)), id_fields[0].value)
    return id_fields[0].value


def _duplicate_problem(call: SieveCall) -> str | None:
    name = call.string_argument("header")
    if call.has_argument("header") and isinstance(name, str) and not FIELD_NAME.fullmatch(name):
        return f'"{name[:100]}" is not a header field name.'
    return None


TESTS = (
    CallSignature(
        "duplicate",
        _evaluate_duplicate,
        (),
        (
            TagOption("handle", ArgumentType.STRING),
            TagOption("header", ArgumentType.STRING, group="source"),
            TagOption("uniqueid", ArgumentType.STRING, group="source"),
            TagOption("seconds", ArgumentType.NUMBER),
            TagOption("last"),
        ),
        extension="duplicate",
        find_problem=_duplicate_problem,
    ),
)
