"""GraphQL types of log entries."""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, ClassVar, Self, cast

import strawberry
from strawberry.scalars import JSON

from graph.spam.spam_report import SpamSymbol
from graph.types import global_ids
from graph.types.errors import attribute_field
from graph.types.object_views import DerivedField, View, return_unchanged
from graph.types.row_mapping import link
from graph.types.scalars import BigInt, ByteSize, Duration, IPAddress
from graph.users.types import User
from models.logs.entries import LogComponent, LogLevel
from resolvers.users import loaders as user_loaders

# The objects whose row IDs log records contain, by the name of the field.
_TYPES_BY_FIELD = {
    "channel": "PushChannel",
    "connector": "Connector",
    "filter": "Filter",
    "key": "ApiKey",
    "legal_holds": "LegalHold",
    "run": "ConnectorRun",
    "task": "Task",
    "webhook": "Webhook",
}


def _fields_with_global_ids(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields with global IDs in the place of row IDs, and without the type."""
    return {
        name: _global_ids_of(_TYPES_BY_FIELD[name], value) if name in _TYPES_BY_FIELD else value
        for name, value in fields.items()
        if name != "type"
    }


def _global_ids_of(type_name: str, value: Any) -> Any:
    if isinstance(value, list):
        return [_global_ids_of(type_name, item) for item in value]
    return global_ids.encode(type_name, value) if isinstance(value, int) else value


def _derived_field_of_member(
    name: str, convert: Callable[[Any], Any] | None = None
) -> DerivedField:
    """Return the derived field of a member of `fields`; null if the entry has no such member."""

    def value_or_none(fields: Mapping[str, Any]) -> Any:
        value = fields.get(name)
        return value if value is None or convert is None else convert(value)

    return DerivedField(("fields",), value_or_none)


def _text_or_none(text: str) -> str | None:
    return text or None


def _user_from_row(row: Any) -> User | None:
    return User.from_row_or_none(row)


@strawberry.interface(description="Entry of the log: what a part of the server reports.")
class LogEntry(View):
    at: datetime = attribute_field("Time of the event that the entry is about.")
    component: LogComponent = attribute_field("Part of the server that wrote the entry.")
    level: LogLevel = attribute_field("Severity of the entry.")
    program: str = attribute_field(
        "Logger or module that wrote the entry. `component` names its part of the server."
    )
    message: str = attribute_field(
        "Text of the entry in English, at most 1,000 characters. Control characters and terminal "
        "escapes are written as visible escapes."
    )
    user: User | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        _user_from_row,
        description="User that the entry is about. Null: none, the user was deleted, or the caller "
        "can't see the user.",
    )
    queue_id: str | None = attribute_field(
        "Queue ID of the message that the log entry is about. Null: it is about no message, or "
        "about one that has no queue ID, such as a message that a limit refused."
    )
    message_id_header: str | None = attribute_field(
        "Message-ID (RFC 5322) of the message that the entry is about. Null: the message has none, "
        "or it is not known."
    )
    correlation_id: str | None = attribute_field(
        "ID of the request that caused the entry, as in the response header `X-Request-Id`. Null: "
        "no request caused it."
    )
    fields: JSON = attribute_field(
        "All further values of the entry as a JSON object, whose members depend on the event. "
        "Objects are given by global ID."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "fields": DerivedField(("fields",), _fields_with_global_ids),
        "message_id_header": DerivedField(("message_id",), return_unchanged),
    }

    @classmethod
    def from_row(cls, row: Any) -> Self:
        """Create the object of an entry, with the type that its event has."""
        kind = _TYPES_BY_EVENT.get(row.fields.get("type"), PlainLogEntry)
        log_entry = kind.__new__(kind)
        log_entry.row = row
        return cast("Self", log_entry)


@strawberry.type(description="Entry of the log without typed values besides the common ones.")
class PlainLogEntry(LogEntry):
    pass


def _duration_from_milliseconds(milliseconds: float) -> Duration:
    return Duration(timedelta(milliseconds=milliseconds))


@strawberry.type(
    description="Entry of the log about a GraphQL operation. It never has values of variables, "
    "arguments or results."
)
class ApiLogEntry(LogEntry):
    operation_name: str | None = attribute_field(
        "Name of the operation in its document. Null: it has none, or the document was refused."
    )
    operation_type: str = attribute_field(
        "`query`, `mutation` or `subscription`; `none` if the document was refused."
    )
    status: str = attribute_field(
        "`ok`, `partial` (some fields failed), `refused`, `failed`, or `gone` if the client left."
    )
    cost: BigInt | None = attribute_field(
        "Cost of the operation in points. Null: it was not computed."
    )
    duration: Duration = attribute_field(
        "Time from the start of the operation to its response; of a subscription, to its end."
    )
    error_codes: list[str] = attribute_field(
        "Codes of the errors in the response, the first 8 in alphabetical order. Empty: there was "
        "no error."
    )
    ip: IPAddress | None = attribute_field("IP address of the client. Null: it is not known.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **LogEntry.derived_fields,
        "operation_name": _derived_field_of_member("operation"),
        "operation_type": _derived_field_of_member("kind"),
        "status": _derived_field_of_member("status"),
        "cost": _derived_field_of_member("cost"),
        "duration": _derived_field_of_member("ms", _duration_from_milliseconds),
        "error_codes": DerivedField(("fields",), lambda fields: fields.get("codes") or []),
        "ip": _derived_field_of_member("ip"),
    }


@strawberry.type(description="Entry of the log about a message that a limit refused or delayed.")
class RateLimitLogEntry(LogEntry):
    limit_name: str = attribute_field(
        "Name of the limit: RATE_USER, RATE_DOMAIN and RATE_PLATFORM are send rates, the others "
        "values of `LimitKind`."
    )
    allowed: BigInt = attribute_field(
        "Value of the limit: messages, recipients, or bytes for STORAGE."
    )
    resets_at: datetime | None = attribute_field(
        "Time when the current period of the limit ends. Null: the limit has no period."
    )
    ip: IPAddress | None = attribute_field(
        "IP address of the client that sent the message. Null: it is not known, as always for the "
        "limits STORAGE, RECEIVED and FORWARDS."
    )
    sender: str | None = attribute_field(
        "Envelope sender. Null: it is empty, or it was not known yet when the limit refused the "
        "message."
    )
    recipients: list[str] = attribute_field(
        "Recipients, at most 100. Empty: they were not known yet when the limit refused the "
        "message."
    )
    subject: str | None = attribute_field(
        "Subject of the message. Null: it has none, or it was not known yet when the limit "
        "refused the message."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **LogEntry.derived_fields,
        "limit_name": _derived_field_of_member("limitName"),
        "allowed": _derived_field_of_member("allowed"),
        "resets_at": _derived_field_of_member("resetsAt", datetime.fromisoformat),
        "ip": _derived_field_of_member("ip"),
        "sender": _derived_field_of_member("sender", _text_or_none),
        "recipients": DerivedField(("fields",), lambda fields: fields.get("recipients") or []),
        "subject": _derived_field_of_member("subject", _text_or_none),
    }


def _symbols_from_json(fields: Mapping[str, Any]) -> list[SpamSymbol]:
    return [
        SpamSymbol(name=name, score=score, description=text)
        for name, score, text in fields.get("symbols") or ()
    ]


@strawberry.type(
    description="Entry of the log about the verdict of the spam check on a received message. "
    "Recipients of one domain with the same verdict share one entry. Filters and the quarantine "
    "run after the verdict, and can change what happens to the message."
)
class SpamLogEntry(LogEntry):
    action: str = attribute_field(
        "Action of the verdict, before filters and the quarantine: `accept`, `junk` (the "
        "message is delivered to Junk) or `refuse`."
    )
    reason: str = attribute_field("Reason of the verdict, such as SCORE, RULE, LEVEL or VIRUS.")
    score: float | None = attribute_field("Points of the spam filter. Null: it did not run.")
    required_score: float | None = attribute_field(
        "Points from which the spam filter recommends to reject a message. Null: it did not run."
    )
    symbols: list[SpamSymbol] = attribute_field(
        "Tests of the spam filter that matched, sorted by the absolute value of `score`, the "
        "highest first. At most 100, and fewer if the log entry would be longer than 16 KiB."
    )
    virus: str | None = attribute_field("Name of the virus that was found. Null: none.")
    sender: str | None = attribute_field("Envelope sender. Null: the message is a bounce.")
    recipients: list[str] = attribute_field(
        "Recipients of the domain with this verdict, at most 100."
    )
    subject: str | None = attribute_field("Subject of the message. Null: it has none.")
    ip: IPAddress | None = attribute_field(
        "IP address of the SMTP client that sent the message to this server. Null if the message "
        "came from a user of this server, by LMTP, or from a connector."
    )
    size: ByteSize = attribute_field("Size of the message in bytes.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **LogEntry.derived_fields,
        **{
            name: _derived_field_of_member(name)
            for name in ("action", "reason", "score", "virus", "recipients", "ip", "size")
        },
        "sender": _derived_field_of_member("sender", _text_or_none),
        "subject": _derived_field_of_member("subject", _text_or_none),
        "required_score": _derived_field_of_member("requiredScore"),
        "symbols": DerivedField(("fields",), _symbols_from_json),
    }  # fmt: skip


@strawberry.type(
    description="Entry of the log about the health of the server: a change of one check, or the "
    "summary that is written each minute."
)
class HealthLogEntry(LogEntry):
    service: str = attribute_field(
        "Name of the check as in `/health/ready`, or `all` for the summary."
    )
    level_percent: int = attribute_field("Healthy checks in percent of all checks of the entry.")
    healthy_count: int = attribute_field(
        "Number of healthy checks. The entry of a single check has 0 or 1; a summary counts all "
        "healthy checks."
    )
    total_count: int = attribute_field(
        "Number of checks. The entry of a single check has 1; a summary counts all checks."
    )
    difference: int = attribute_field(
        "Change of `healthyCount` since the entry before: below 0 if checks have failed."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **LogEntry.derived_fields,
        "service": _derived_field_of_member("service"),
        "level_percent": _derived_field_of_member("levelPercent"),
        "healthy_count": _derived_field_of_member("healthy"),
        "total_count": _derived_field_of_member("total"),
        "difference": _derived_field_of_member("difference"),
    }


@strawberry.type(
    description="Entry of the log about an autoconfiguration request: a mail program asks for the "
    "server settings of a domain. The entry never has the email address of the request."
)
class AutodiscoverLogEntry(LogEntry):
    service: str = attribute_field(
        "`autoconfig` (Thunderbird and others) or `autodiscover` (Outlook)."
    )
    user_agent: str | None = attribute_field(
        "Header User-Agent of the request, at most 500 characters. Null: the request had none."
    )
    domain: str | None = attribute_field(
        "Domain of the email address in the request, or of the host name if it has no address. "
        "Null: the request was refused before its domain was known."
    )
    http_status: int = attribute_field(
        "HTTP status of the response, such as 200, or 404 for a domain without settings."
    )
    ip: IPAddress | None = attribute_field("IP address of the client. Null: it is not known.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **LogEntry.derived_fields,
        "service": _derived_field_of_member("service"),
        "user_agent": _derived_field_of_member("userAgent"),
        "domain": _derived_field_of_member("domain"),
        "http_status": _derived_field_of_member("status"),
        "ip": _derived_field_of_member("ip"),
    }


_TYPES_BY_EVENT: Mapping[str | None, type[LogEntry]] = {
    "operation": ApiLogEntry,
    "limit": RateLimitLogEntry,
    "verdict": SpamLogEntry,
    "health": HealthLogEntry,
    "autodiscover": AutodiscoverLogEntry,
}
LOG_ENTRY_TYPES: tuple[type, ...] = (PlainLogEntry, *_TYPES_BY_EVENT.values())
