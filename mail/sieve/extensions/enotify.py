"""The command `notify` and its tests (RFC 5435, RFC 5436)."""

import re
from dataclasses import dataclass
from urllib.parse import unquote

from mail.sieve import limits
from mail.sieve.actions import Notify
from mail.sieve.execution import value_matching
from mail.sieve.execution.interpreter import Run
from mail.sieve.execution.signatures import MATCH, Call, Given, Kind, Option, Signature
from mail.sieve.extensions.core_commands import FIELD_NAME, constants, wrong_address
from mail.sieve.extensions.mailboxes import COPIED, check_mailboxes, copied

_SCHEME = "mailto:"
_USUAL = "2"  # normal
_MOST_FIELDS = 16
_ENCODED = re.compile(r"(?:[^%]|%[0-9a-f]{2})*+", re.IGNORECASE | re.DOTALL)
# RFC 5436, section 2.7: these fields are generated; values of the URI are ignored.
_OURS = frozenset(
    """
    auto-submitted bcc cc content-transfer-encoding content-type date from message-id
    mime-version received reply-to resent-bcc resent-cc resent-date resent-from resent-to
    return-path sender to
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)


@dataclass(frozen=True, slots=True)
class Mailto:
    """The recipients, header fields and body of a mailto URI (RFC 6068)."""

    to: tuple[str, ...]
    fields: tuple[tuple[str, str], ...]  # name in lower case, value
    body: str


def mailto(uri: str) -> Mailto:
    """Parse a mailto URI.

    Raises ValueError if it is invalid, has no recipients or exceeds a limit.
    """
    if uri[: len(_SCHEME)].lower() != _SCHEME:
        raise ValueError(f"notifications go to {_SCHEME} alone")
    if len(uri) > limits.FIELD or not _ENCODED.fullmatch(uri):
        raise ValueError(f'"{uri[:100]}" is no URI')
    people, _, rest = uri[len(_SCHEME) :].partition("?")
    pairs = [_pair(word) for word in rest.split("&")] if rest else []
    listed = [value for name, value in pairs if name == "to"]
    to = [unquote(one) for one in people.split(",") if one]
    to += [one.strip() for one in ",".join(listed).split(",") if one.strip()]
    bodies = [value for name, value in pairs if name == "body"]
    fields = [
        (name, " ".join(value.split()))
        for name, value in pairs
        if name != "body" and name not in _OURS
    ]
    if not to or len(to) > limits.REDIRECTS or len(fields) > _MOST_FIELDS:
        raise ValueError(f"a notification goes to 1 to {limits.REDIRECTS} addresses")
    for address in to:
        if problem := wrong_address(address):
            raise ValueError(problem)
    return Mailto(tuple(to), tuple(fields), bodies[-1] if bodies else "")


def _pair(word: str) -> tuple[str, str]:
    """Return name, in lower case, and value of a field of a URI. Raises ValueError."""
    name, equals, value = (unquote(one) for one in word.partition("="))
    if not equals or not FIELD_NAME.fullmatch(name):
        raise ValueError(f'"{word[:100]}" is no part of a URI')
    return name.lower(), value


def _notify(run: Run, call: Call) -> None:
    method = run.text(call, "method")
    try:
        found = mailto(method)
    except ValueError as problem:
        raise run.failed(call, str(problem)) from problem
    importance = run.text(call, "importance") if call.has("importance") else _USUAL
    if importance not in ("1", "2", "3"):
        raise run.failed(call, ':importance is "1", "2" or "3"')
    from_ = run.text(call, "from") if call.has("from") else None
    if from_ is not None and (wrong := wrong_address(from_)):
        raise run.failed(call, wrong)
    told = {to.lower() for one in run.actions if isinstance(one, Notify) for to in one.to}
    to = tuple(one for one in dict.fromkeys(found.to) if one.lower() not in told)
    if len(told) + len(to) > limits.REDIRECTS:
        raise run.failed(call, f"at most {limits.REDIRECTS} are notified")
    run.note(call, method if to else "all are told already")
    if not to:
        return
    run.act(
        call,
        Notify(
            method=method,
            to=to,
            fields=found.fields,
            body=found.body,
            message=run.text(call, "message"),
            importance=int(importance),
            from_=from_,
            options=tuple(run.texts(call, "options")),
            fcc=copied(run, call),
        ),
    )


def _valid(run: Run, call: Call) -> bool:
    try:
        for uri in run.texts(call, "uris"):
            mailto(uri)
    except ValueError:
        return False
    return True


def _capability(run: Run, call: Call) -> bool:
    """Evaluate a capability. `online` is always "maybe": mail may be read later."""
    try:
        mailto(run.text(call, "uri"))
    except ValueError:
        return False
    if run.text(call, "capability").lower() != "online":
        return False
    return value_matching.matched(run, call, ["maybe"], run.texts(call, "keys"))


def _check(call: Call) -> str | None:
    importance = call.string("importance")
    if call.has("importance") and isinstance(importance, str) and importance not in "123":
        return ':importance is "1", "2" or "3"'
    try:
        for uri in constants([call.string("method")]):
            mailto(uri)
    except ValueError as problem:
        return str(problem)
    for text in constants([call.string("from")] if call.has("from") else []):
        if wrong := wrong_address(text):
            return wrong
    return check_mailboxes(call)


COMMANDS = (
    Signature(
        "notify",
        _notify,
        (Given("method"),),
        (
            Option("from", Kind.STRING),
            Option("importance", Kind.STRING),
            Option("options", Kind.STRINGS),
            Option("message", Kind.STRING),
            *COPIED,
        ),
        extension="enotify",
        check=_check,
    ),
)
TESTS = (
    Signature("valid_notify_method", _valid, (Given("uris", Kind.STRINGS),), extension="enotify"),
    Signature(
        "notify_method_capability",
        _capability,
        (Given("uri"), Given("capability"), Given("keys", Kind.STRINGS)),
        MATCH,
        extension="enotify",
        check=value_matching.check,
    ),
)
