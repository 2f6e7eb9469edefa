"""Event types of webhooks, and the facts that a webhook delivery contains.

Facts are ids and numbers, without message content or mailbox names. A receiver queries details
with its own rights.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models.auth.security_log import AuthEventAction, AuthEventResult
from models.events.journal import EventType
from models.store.columns import ColumnRow

PING = "ping"  # of a test call; sent to every webhook
MISSED_TYPE = "changes.missed"  # sent to every webhook
ALL_TYPES = "*"
PREFIX_WILDCARD = ".*"  # ends a pattern that is a prefix
TYPE_BY_EVENT_TYPE: Mapping[EventType, str] = {
    EventType.MAILBOX_CREATED: "mailbox.created",
    EventType.MAILBOX_UPDATED: "mailbox.updated",
    EventType.MAILBOX_RENAMED: "mailbox.renamed",
    EventType.MAILBOX_DELETED: "mailbox.deleted",
    EventType.MESSAGE_ADDED: "message.added",
    EventType.MESSAGE_UPDATED: "message.updated",
    EventType.MESSAGE_MOVED: "message.moved",
    EventType.MESSAGE_PURGED: "message.deleted",
    EventType.MESSAGE_DELETED: "message.archived",
    EventType.MESSAGE_RESTORED: "message.restored",
    EventType.THREAD_CHANGED: "thread.changed",
    EventType.LABEL_CHANGED: "label.changed",
    EventType.SAVED_SEARCH_CHANGED: "savedSearch.changed",
    EventType.SENDER_RULE_CHANGED: "senderRule.changed",
    EventType.SUBMISSION_CHANGED: "submission.changed",
    EventType.FILE_CHANGED: "file.changed",
    EventType.ADDRESS_CHANGED: "address.updated",
    EventType.IDENTITY_CHANGED: "identity.changed",
    EventType.FILTER_CHANGED: "filter.changed",
    EventType.USER_CHANGED: "user.updated",
    EventType.DOMAIN_CHANGED: "domain.updated",
    EventType.TASK_CHANGED: "task.changed",
    EventType.SETTING_CHANGED: "setting.changed",
    EventType.KEY_VALUE_CHANGED: "keyValue.changed",
    EventType.LIMIT_REACHED: "limit.reached",
    EventType.AUTOREPLY_CHANGED: "autoreply.changed",
    EventType.SIEVE_CHANGED: "sieve.changed",
    EventType.QUARANTINE_CHANGED: "quarantine.changed",
    EventType.CONNECTOR_CHANGED: "connector.changed",
    EventType.DKIM_CHANGED: "dkim.updated",
    EventType.RELAY_HOST_CHANGED: "relayHost.changed",
    EventType.TRANSPORT_CHANGED: "transport.changed",
    EventType.TLS_POLICY_CHANGED: "tlsPolicy.changed",
    EventType.FORWARDING_HOST_CHANGED: "forwardingHost.changed",
    EventType.COMPOSE_REQUESTED: "compose.requested",
    EventType.CERTIFICATE_CHANGED: "certificate.changed",
}
TYPE_BY_ACTION: Mapping[EventType, Mapping[str, str]] = {  # by the fact `did` of the journal entry
    EventType.USER_CHANGED: {
        did: f"user.{did}" for did in ("created", "deleted", "restored", "removed")
    },
    EventType.ADDRESS_CHANGED: {
        did: f"address.{did}" for did in ("created", "deleted", "restored")
    },
    EventType.DOMAIN_CHANGED: {did: f"domain.{did}" for did in ("created", "deleted")},
    EventType.DKIM_CHANGED: {did: f"dkim.{did}" for did in ("created", "deleted")},
    EventType.MESSAGE_ADDED: {"received": "message.received"},
    EventType.AUTOREPLY_CHANGED: {did: f"autoreply.{did}" for did in ("enabled", "disabled")},
    EventType.SIEVE_CHANGED: {"failed": "sieve.failed"},
    EventType.QUARANTINE_CHANGED: {
        did: f"quarantine.{did}" for did in ("held", "released", "deleted", "expired")
    },
}
TYPE_BY_SUBMISSION_STATE = {
    "SENT": "message.sent",
    "PARTIAL": "message.bounced",
    "FAILED": "message.bounced",
}
OTHER_SECURITY_TYPE = "security.noted"  # of all other security log entries
TYPE_BY_SECURITY_ACTION = {  # by action and success
    (AuthEventAction.AUTHENTICATE, True): "login.succeeded",
    (AuthEventAction.AUTHENTICATE, False): "login.failed",
    (AuthEventAction.API_KEY_USE, False): "login.failed",
    (AuthEventAction.TOTP_VERIFY, False): "login.failed",
    (AuthEventAction.WEBAUTHN_VERIFY, False): "login.failed",
    (AuthEventAction.USER_IMPERSONATE, True): "user.actedAs",
    (AuthEventAction.PASSWORD_CHANGE, True): "password.changed",
    (AuthEventAction.PASSWORD_RESET, True): "password.reset",
    (AuthEventAction.FORWARDING_CHANGE, True): "forwarding.changed",
    (AuthEventAction.TOTP_ENABLE, True): "totp.enabled",
    (AuthEventAction.TOTP_DISABLE, True): "totp.disabled",
    (AuthEventAction.EXTERNAL_TWO_FACTOR_ENABLE, True): "externalTwoFactor.enabled",
    (AuthEventAction.EXTERNAL_TWO_FACTOR_DISABLE, True): "externalTwoFactor.disabled",
    (AuthEventAction.WEBAUTHN_REGISTER, True): "webauthn.registered",
    (AuthEventAction.WEBAUTHN_DELETE, True): "webauthn.deleted",
    (AuthEventAction.TWO_FACTOR_DISABLE, True): "twoFactor.disabled",
    (AuthEventAction.RECOVERY_CODES_CREATE, True): "recoveryCodes.created",
    (AuthEventAction.SESSION_TERMINATE, True): "session.kicked",
    (AuthEventAction.TOKEN_REVOKE, True): "token.revoked",
    **{
        (AuthEventAction(f"{what}_{verb.upper()}"), True): f"{noun}.{verb}d"
        for what, noun in (("APP_PASSWORD", "appPassword"), ("API_KEY", "apiKey"))
        for verb in ("create", "update", "delete")
    },
}
TYPES = sorted(
    {
        *TYPE_BY_EVENT_TYPE.values(),
        *(name for names in TYPE_BY_ACTION.values() for name in names.values()),
        *TYPE_BY_SUBMISSION_STATE.values(),
        *TYPE_BY_SECURITY_ACTION.values(),
        OTHER_SECURITY_TYPE,
    }
)
FACT_NAMES: Mapping[str, tuple[str, ...]] = {  # names in the journal, by prefix of the change kind
    "MESSAGE_": ("mailbox", "uid", "flags", "fromMailbox", "fromUid"),
    "SUBMISSION_": ("state",),
    "USER_": ("changed",),
    "AUTOREPLY_": ("changed",),
    "SETTING_": ("key",),
    "LIMIT_": ("limitKind", "level", "used", "limit", "refused", "resetsAt"),
}


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """An event of one change, about one or many objects."""

    type: str
    change: ColumnRow
    objects: Sequence[Mapping[str, Any]]  # each with its row id as `id`
    part: int = 0  # number among the events of one change

    @property
    def event_id(self) -> str:
        """The unique id of the event."""
        part = f"-{self.part}" if self.part else ""
        return f"evt_{self.change.stream_id}_{self.change.last}{part}"

    def stored_body(self, user: ColumnRow | None, domain_id: int | None) -> dict[str, Any]:
        """Return the stored body of a webhook delivery."""
        return {
            "kind": self.change.type,
            "user": user and {"id": user.id, "username": user.username},
            "domain": domain_id,
            "objects": list(self.objects),
            "origin": self.change.origin,
        }


def matches_type(patterns: Sequence[str], event_type: str) -> bool:
    """True if a pattern matches the event type: exact, a prefix with `.*`, or `*`."""
    return any(
        pattern in (event_type, ALL_TYPES)
        or (pattern.endswith(PREFIX_WILDCARD) and event_type.startswith(pattern[:-1]))
        for pattern in patterns
    )


def is_known_pattern(pattern: str) -> bool:
    """True if the pattern matches any event type."""
    return any(matches_type([pattern], name) for name in TYPES)


def events_of_change(
    change: ColumnRow, security_rows: Mapping[int, ColumnRow]
) -> Iterator[WebhookEvent]:
    """Yield the events of a change.

    `security_rows` are the security log rows it refers to, by id.
    """
    if change.type is EventType.RESYNC:
        return
    if change.type is not EventType.SECURITY_EVENT:
        yield WebhookEvent(_event_type(change), change, _object_facts(change))
        return
    by_type: dict[str, list[dict[str, Any]]] = {}
    for key in change.ids:
        row = security_rows.get(key)
        if row is not None:  # one that is no longer kept is no news
            facts = {name: getattr(row, name) for name in ("action", "result", "protocol", "ip")}
            event_type = TYPE_BY_SECURITY_ACTION.get(
                (row.action, row.result is AuthEventResult.SUCCESS), OTHER_SECURITY_TYPE
            )
            by_type.setdefault(event_type, []).append({"id": key, **facts, "count": row.count})
    for part, (event_type, objects) in enumerate(by_type.items()):
        yield WebhookEvent(event_type, change, objects, part)


def _event_type(change: ColumnRow) -> str:
    event_type = change.type
    if event_type is EventType.SUBMISSION_CHANGED:
        return TYPE_BY_SUBMISSION_STATE.get(
            str(change.facts.get("state")), TYPE_BY_EVENT_TYPE[event_type]
        )
    did = TYPE_BY_ACTION.get(event_type, {}).get(str(change.facts.get("did")))
    return did or TYPE_BY_EVENT_TYPE[event_type]


def _object_facts(change: ColumnRow) -> list[dict[str, Any]]:
    names = next(
        (names for begin, names in FACT_NAMES.items() if change.type.startswith(begin)), ()
    )
    facts = {name: change.facts[name] for name in names if name in change.facts}
    return [
        {"id": key} | {n: v[nth] if isinstance(v, list) else v for n, v in facts.items()}
        for nth, key in enumerate(change.ids)
    ]
