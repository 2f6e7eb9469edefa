"""The command `notify` and its tests (RFC 5435, RFC 5436)."""

import re
from dataclasses import dataclass
from urllib.parse import unquote

from mail.sieve import limits
from mail.sieve.actions import MailNotification
from mail.sieve.execution import value_matching
from mail.sieve.execution.interpreter import ScriptRun
from mail.sieve.execution.signatures import (
    MATCH_OPTIONS,
    ArgumentType,
    CallSignature,
    PositionalArgument,
    SieveCall,
    TagOption,
)
from mail.sieve.extensions.core_commands import (
    FIELD_NAME,
    recipient_problem,
    strings_without_variables,
)
from mail.sieve.extensions.mailboxes import FCC_OPTIONS, fcc_copy_or_none, mailbox_arguments_problem

_SCHEME = "mailto:"
_DEFAULT_IMPORTANCE = "2"  # normal
_MAX_FIELDS = 16
_ENCODED = re.compile(r"(?:[^%]|%[0-9a-f]{2})*+", re.IGNORECASE | re.DOTALL)
# RFC 5436, section 2.7: these fields are generated; values of the URI are ignored.
_IGNORED_FIELDS = frozenset(
    """
    auto-submitted bcc cc content-transfer-encoding content-type date from message-id
    mime-version received reply-to resent-bcc resent-cc resent-date resent-from resent-to
    return-path sender to
    """.split()  # noqa: SIM905 - a list of lines would be a page long
)


@dataclass(frozen=True, slots=True)
class MailtoUri:
    """The recipients, header fields and body of a mailto URI (RFC 6068)."""

    recipients: tuple[str, ...]
    header_fields: tuple[tuple[str, str], ...]  # name in lower case, value
    body: str


def parse_mailto(uri: str) -> MailtoUri:
    """Parse a mailto URI.

    Raises ValueError if it is invalid, has no recipients or exceeds a limit.
    """
    if uri[: len(_SCHEME)].lower() != _SCHEME:
        raise ValueError(f"Notifications support only the method {_SCHEME}.")
    if len(uri) > limits.MAX_FIELD_LENGTH or not _ENCODED.fullmatch(uri):
        raise ValueError(f'"{uri[:100]}" is not a URI.')
    people, _, rest = uri[len(_SCHEME) :].partition("?")
    pairs = [_parse_field_name_and_value(word) for word in rest.split("&")] if rest else []
    listed = [value for name, value in pairs if name == "to"]
    addresses = [unquote(person) for person in people.split(",") if person]
    addresses += [address.strip() for address in ",".join(listed).split(",") if address.strip()]
    bodies = [value for name, value in pairs if name == "body"]
    fields = [
        (name, " ".join(value.split()))
        for name, value in pairs
        if name != "body" and name not in _IGNORED_FIELDS
    ]
    if not addresses or len(addresses) > limits.MAX_REDIRECTS or len(fields) > _MAX_FIELDS:
        raise ValueError(f"A notification must have from 1 to {limits.MAX_REDIRECTS} addresses.")
    for address in addresses:
        if problem := recipient_problem(address):
            raise ValueError(problem)
    return MailtoUri(tuple(addresses), tuple(fields), bodies[-1] if bodies else "")


def _parse_field_name_and_value(field_text: str) -> tuple[str, str]:
    """Return name, in lower case, and value of a field of a URI. Raises ValueError."""
    name, equals, value = (unquote(parameter) for parameter in field_text.partition("="))
    if not equals or not FIELD_NAME.fullmatch(name):
        raise ValueError(f'"{field_text[:100]}" is not a part of a URI.')
    return name.lower(), value


def _execute_notify(run: ScriptRun, call: SieveCall) -> None:
    method = run.expanded_argument_or_empty(call, "method")
    try:
        mailto = parse_mailto(method)
    except ValueError as problem:
        raise run.error_at(call, str(problem)) from problem
    importance = (
        run.expanded_argument_or_empty(call, "importance")
        if call.has_argument("importance")
        else _DEFAULT_IMPORTANCE
    )
    if importance not in ("1", "2", "3"):
        raise run.error_at(call, ':importance must be "1", "2" or "3".')
    from_ = run.expanded_argument_or_empty(call, "from") if call.has_argument("from") else None
    if from_ is not None and (wrong := recipient_problem(from_)):
        raise run.error_at(call, wrong)
    notified = {
        recipient.lower()
        for action in run.actions
        if isinstance(action, MailNotification)
        for recipient in action.recipients
    }
    recipients = tuple(
        recipient
        for recipient in dict.fromkeys(mailto.recipients)
        if recipient.lower() not in notified
    )
    if len(notified) + len(recipients) > limits.MAX_REDIRECTS:
        raise run.error_at(call, f"A script can notify at most {limits.MAX_REDIRECTS} addresses.")
    run.add_trace_step(call, method if recipients else "all addresses were notified already")
    if not recipients:
        return
    run.add_or_merge_action(
        call,
        MailNotification(
            method=method,
            recipients=recipients,
            header_fields=mailto.header_fields,
            body=mailto.body,
            message=run.expanded_argument_or_empty(call, "message"),
            importance=int(importance),
            from_=from_,
            options=tuple(run.strings_argument(call, "options")),
            fcc=fcc_copy_or_none(run, call),
        ),
    )


def _evaluate_valid_notify_method(run: ScriptRun, call: SieveCall) -> bool:
    try:
        for uri in run.strings_argument(call, "uris"):
            run.count_steps(call)
            parse_mailto(uri)
    except ValueError:
        return False
    return True


def _evaluate_notify_method_capability(run: ScriptRun, call: SieveCall) -> bool:
    """Evaluate a capability. `online` is always "maybe": mail may be read later."""
    try:
        parse_mailto(run.expanded_argument_or_empty(call, "uri"))
    except ValueError:
        return False
    if run.expanded_argument_or_empty(call, "capability").lower() != "online":
        return False
    return value_matching.any_value_matches(
        run, call, ["maybe"], run.strings_argument(call, "keys")
    )


def _notify_problem(call: SieveCall) -> str | None:
    importance = call.string_argument("importance")
    if call.has_argument("importance") and isinstance(importance, str) and importance not in "123":
        return ':importance must be "1", "2" or "3".'
    try:
        for uri in strings_without_variables([call.string_argument("method")]):
            parse_mailto(uri)
    except ValueError as problem:
        return str(problem)
    for text in strings_without_variables(
        [call.string_argument("from")] if call.has_argument("from") else []
    ):
        if wrong := recipient_problem(text):
            return wrong
    return mailbox_arguments_problem(call)


COMMANDS = (
    CallSignature(
        "notify",
        _execute_notify,
        (PositionalArgument("method"),),
        (
            TagOption("from", ArgumentType.STRING),
            TagOption("importance", ArgumentType.STRING),
            TagOption("options", ArgumentType.STRINGS),
            TagOption("message", ArgumentType.STRING),
            *FCC_OPTIONS,
        ),
        extension="enotify",
        find_problem=_notify_problem,
    ),
)
TESTS = (
    CallSignature(
        "valid_notify_method",
        _evaluate_valid_notify_method,
        (PositionalArgument("uris", ArgumentType.STRINGS),),
        extension="enotify",
    ),
    CallSignature(
        "notify_method_capability",
        _evaluate_notify_method_capability,
        (
            PositionalArgument("uri"),
            PositionalArgument("capability"),
            PositionalArgument("keys", ArgumentType.STRINGS),
        ),
        MATCH_OPTIONS,
        extension="enotify",
        find_problem=value_matching.match_tags_problem,
    ),
)
