"""Table of the security log: sign-ins and credential changes of users."""

from enum import StrEnum
from typing import Any

from sqlalchemy import Index
from sqlmodel import Field

from models.events.event_types import EventType
from models.store.columns import (
    Int64,
    OptionalInt64,
    OptionalTimestamp,
    RowWithId,
    Timestamp,
    enum_column,
    foreign_key,
    json_column,
)


class SecurityEventAction(StrEnum):
    """What was done with an account or a credential."""

    ACCESS_GRANT_REFUSED = "ACCESS_GRANT_REFUSED"
    ALLOWED_SENDERS_CHANGED = "ALLOWED_SENDERS_CHANGED"
    API_KEY_CREATED = "API_KEY_CREATED"
    API_KEY_DELETED = "API_KEY_DELETED"
    API_KEY_REFUSED = "API_KEY_REFUSED"
    API_KEY_UPDATED = "API_KEY_UPDATED"
    APP_PASSWORD_CREATED = "APP_PASSWORD_CREATED"  # noqa: S105 - a name
    APP_PASSWORD_DELETED = "APP_PASSWORD_DELETED"  # noqa: S105 - a name
    APP_PASSWORD_UPDATED = "APP_PASSWORD_UPDATED"  # noqa: S105 - a name
    BAN_CREATED = "BAN_CREATED"
    BCC_RULE_CREATED = "BCC_RULE_CREATED"
    BCC_RULE_DELETED = "BCC_RULE_DELETED"
    BCC_RULE_UPDATED = "BCC_RULE_UPDATED"
    CONNECTOR_CREATED = "CONNECTOR_CREATED"
    CONNECTOR_DELETED = "CONNECTOR_DELETED"
    CONNECTOR_UPDATED = "CONNECTOR_UPDATED"
    EXTERNAL_TWO_FACTOR_DISABLED = "EXTERNAL_TWO_FACTOR_DISABLED"
    EXTERNAL_TWO_FACTOR_ENABLED = "EXTERNAL_TWO_FACTOR_ENABLED"
    FILTER_FORWARDING_ADDED = "FILTER_FORWARDING_ADDED"
    FORWARDING_CHANGED = "FORWARDING_CHANGED"
    IDENTITY_BCC_CHANGED = "IDENTITY_BCC_CHANGED"
    IMPERSONATION_STARTED = "IMPERSONATION_STARTED"
    MAILBOX_SHARE_DELETED = "MAILBOX_SHARE_DELETED"
    MAILBOX_SHARE_SET = "MAILBOX_SHARE_SET"
    MESSAGES_READ = "MESSAGES_READ"
    MESSAGES_TRANSFERRED = "MESSAGES_TRANSFERRED"
    MESSAGE_REDIRECTED = "MESSAGE_REDIRECTED"
    MESSAGE_SENT = "MESSAGE_SENT"
    OAUTH_GRANT_CREATED = "OAUTH_GRANT_CREATED"
    OAUTH_GRANT_REVOKED = "OAUTH_GRANT_REVOKED"
    OAUTH_TOKEN_REPLAYED = "OAUTH_TOKEN_REPLAYED"  # noqa: S105 - a name
    PASSWORD_CHANGED = "PASSWORD_CHANGED"  # noqa: S105 - a name
    PASSWORD_GUESSING_DETECTED = "PASSWORD_GUESSING_DETECTED"  # noqa: S105 - a name
    PASSWORD_RESET = "PASSWORD_RESET"  # noqa: S105 - a name
    PUSH_CHANNEL_DELETED = "PUSH_CHANNEL_DELETED"
    PUSH_CHANNEL_SET = "PUSH_CHANNEL_SET"
    RECOVERY_CODES_CREATED = "RECOVERY_CODES_CREATED"
    RECOVERY_CODE_USED = "RECOVERY_CODE_USED"
    SESSION_TERMINATED = "SESSION_TERMINATED"
    SIEVE_FORWARDING_ADDED = "SIEVE_FORWARDING_ADDED"
    SIGN_IN_ATTEMPTED = "SIGN_IN_ATTEMPTED"
    TOKEN_REVOKED = "TOKEN_REVOKED"  # noqa: S105 - a name
    TOTP_CHECKED = "TOTP_CHECKED"
    TOTP_DISABLED = "TOTP_DISABLED"
    TOTP_ENABLED = "TOTP_ENABLED"
    TOTP_SECRET_CREATED = "TOTP_SECRET_CREATED"  # noqa: S105 - a name
    TWO_FACTOR_DISABLED = "TWO_FACTOR_DISABLED"
    WEBAUTHN_CHECKED = "WEBAUTHN_CHECKED"
    WEBAUTHN_DELETED = "WEBAUTHN_DELETED"
    WEBAUTHN_REGISTERED = "WEBAUTHN_REGISTERED"
    WEBHOOK_CREATED = "WEBHOOK_CREATED"
    WEBHOOK_DELETED = "WEBHOOK_DELETED"
    WEBHOOK_UPDATED = "WEBHOOK_UPDATED"


class SecurityEventResult(StrEnum):
    """The result of a security event."""

    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    SUSPENDED = "SUSPENDED"
    DISABLED = "DISABLED"


class AuthProtocol(StrEnum):
    """The protocol through which a client signs in."""

    API = "API"
    HTTP = "HTTP"
    SMTP = "SMTP"
    IMAP = "IMAP"
    POP3 = "POP3"
    MANAGESIEVE = "MANAGESIEVE"
    CALDAV = "CALDAV"
    CARDDAV = "CARDDAV"
    OTHER = "OTHER"


class SecurityEvent(RowWithId, table=True):
    """A security event. Equal events within six hours of the first one are one row."""

    __tablename__ = "security_events"
    __table_args__ = (
        Index("ix_security_events_user_id", "user_id", "created_at", "id"),
        Index("ix_security_events_created_at", "created_at", "id"),
        Index("ix_security_events_action", "action", "created_at", "id"),
        Index("ix_security_events_ip_key", "ip_key", "created_at", "id"),
    )

    user_id: int | None = foreign_key("users.id", index=False, default=None)  # None: of no user
    fold: str = Field(unique=True)  # key of equal events; after its time, with the id of the row
    action: SecurityEventAction = enum_column(SecurityEventAction)
    result: SecurityEventResult = enum_column(SecurityEventResult)
    protocol: AuthProtocol | None = enum_column(AuthProtocol, default=None, nullable=True)
    ip: str | None = None
    ip_key: str | None = None  # 32 hex digits of IPv6: networks are ranges of these
    session_id: str | None = None
    by: str | None = None  # the administrator, if it was not the user
    by_id: OptionalInt64 = None
    detail: dict[str, Any] | None = json_column()
    count: Int64 = 1
    created_at: Timestamp
    last_at: Timestamp
    journaled_at: OptionalTimestamp = None  # when the last journal entry about it was written


_FAILED_SIGN_IN_ACTIONS = frozenset(
    {
        SecurityEventAction.SIGN_IN_ATTEMPTED,
        SecurityEventAction.API_KEY_REFUSED,
        SecurityEventAction.TOTP_CHECKED,
        SecurityEventAction.WEBAUTHN_CHECKED,
    }
)  # a failure is the event SIGN_IN_FAILED
SAME_NAMED_EVENT_TYPES = frozenset(
    {
        EventType.IMPERSONATION_STARTED,
        *(EventType.PASSWORD_CHANGED, EventType.PASSWORD_RESET, EventType.FORWARDING_CHANGED),
        *(EventType.TOTP_ENABLED, EventType.TOTP_DISABLED),
        *(EventType.EXTERNAL_TWO_FACTOR_ENABLED, EventType.EXTERNAL_TWO_FACTOR_DISABLED),
        *(EventType.WEBAUTHN_REGISTERED, EventType.WEBAUTHN_DELETED),
        *(EventType.TWO_FACTOR_DISABLED, EventType.RECOVERY_CODES_CREATED),
        *(EventType.SESSION_TERMINATED, EventType.TOKEN_REVOKED),
        *(EventType.APP_PASSWORD_CREATED, EventType.APP_PASSWORD_UPDATED),
        EventType.APP_PASSWORD_DELETED,
        *(EventType.OAUTH_GRANT_CREATED, EventType.OAUTH_GRANT_REVOKED),
        *(EventType.API_KEY_CREATED, EventType.API_KEY_UPDATED, EventType.API_KEY_DELETED),
    }
)  # of entries of the security log whose action has the same name
SECURITY_EVENT_TYPES = SAME_NAMED_EVENT_TYPES | {
    EventType.SIGN_IN_SUCCEEDED,
    EventType.SIGN_IN_FAILED,
    EventType.SECURITY_EVENT,
}  # each is about an entry of the security log


def security_event_type(action: SecurityEventAction, result: SecurityEventResult) -> EventType:
    """Return the type of the event of an entry of the security log."""
    if result is not SecurityEventResult.SUCCESS:
        is_sign_in = action in _FAILED_SIGN_IN_ACTIONS
        return EventType.SIGN_IN_FAILED if is_sign_in else EventType.SECURITY_EVENT
    if action is SecurityEventAction.SIGN_IN_ATTEMPTED:
        return EventType.SIGN_IN_SUCCEEDED
    # An action such as CONNECTOR_CREATED is a SECURITY_EVENT: CONNECTOR_CREATED is about the
    # connector.
    name = action.value
    return EventType(name) if name in SAME_NAMED_EVENT_TYPES else EventType.SECURITY_EVENT
