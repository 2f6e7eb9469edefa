"""The test `duplicate`: was a message with this id seen before (RFC 7352)?"""

from hashlib import sha256

from mail.mime import message_ids
from mail.sieve import limits
from mail.sieve.actions import Remembered
from mail.sieve.execution import comparators
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import Call, Kind, Option, Signature
from mail.sieve.extensions.core_commands import FIELD_NAME

_DAY = 86_400
_USUAL, _LONGEST = 7 * _DAY, 90 * _DAY  # how long an id is stored


def _duplicate(run: Run, call: Call) -> bool:
    unique = _unique(run, call)
    if not unique:
        return False
    kind = "uniqueid" if call.has("uniqueid") else "header"
    words = (run.text(call, "handle"), kind, unique)
    key = sha256("\0".join(words).encode("utf-8", "replace")).hexdigest()
    run.asked.add(key)
    if len(run.asked) > limits.KEPT_IDS:
        raise run.failed(call, f"at most {limits.KEPT_IDS} ids are asked for")
    seen = key in run.circumstances.seen
    if not seen or call.has("last"):
        seconds = min(call.number("seconds", _USUAL), _LONGEST)
        others = [one for one in run.remembered if one.key != key]
        run.remembered = [*others, Remembered(key, seconds)]
    return seen


def _unique(run: Run, call: Call) -> str:
    """Return the id of the message that the test compares, "" if it has none."""
    if call.has("uniqueid"):
        return run.text(call, "uniqueid")
    name = run.text(call, "header") if call.has("header") else "message-id"
    found = run.headers(name)
    if not found:
        return ""
    run.spend(call, comparators.cost(len(found[0].value), 8))
    if not call.has("header"):
        return next(iter(message_ids(found[0].value)), found[0].value)
    return found[0].value


def _check(call: Call) -> str | None:
    name = call.string("header")
    if call.has("header") and isinstance(name, str) and not FIELD_NAME.fullmatch(name):
        return f'"{name[:100]}" is no name of a field'
    return None


TESTS = (
    Signature(
        "duplicate",
        _duplicate,
        (),
        (
            Option("handle", Kind.STRING),
            Option("header", Kind.STRING, group="source"),
            Option("uniqueid", Kind.STRING, group="source"),
            Option("seconds", Kind.NUMBER),
            Option("last"),
        ),
        extension="duplicate",
        check=_check,
    ),
)
