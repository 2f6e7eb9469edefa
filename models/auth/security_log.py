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

    ACCESS_GRANT = "ACCESS_GRANT"
    ALLOWED_SENDERS_CHANGE = "ALLOWED_SENDERS_CHANGE"
    API_KEY_CREATE = "API_KEY_CREATE"
    API_KEY_DELETE = "API_KEY_DELETE"
    API_KEY_UPDATE = "API_KEY_UPDATE"
    API_KEY_USE = "API_KEY_USE"
    APP_PASSWORD_CREATE = "APP_PASSWORD_CREATE"  # noqa: S105 - a name
    APP_PASSWORD_DELETE = "APP_PASSWORD_DELETE"  # noqa: S105 - a name
    APP_PASSWORD_UPDATE = "APP_PASSWORD_UPDATE"  # noqa: S105 - a name
    AUTHENTICATE = "AUTHENTICATE"
    BCC_RULE_CREATE = "BCC_RULE_CREATE"
    BCC_RULE_DELETE = "BCC_RULE_DELETE"
    BCC_RULE_UPDATE = "BCC_RULE_UPDATE"
    CONNECTOR_CREATE = "CONNECTOR_CREATE"
    CONNECTOR_DELETE = "CONNECTOR_DELETE"
    CONNECTOR_UPDATE = "CONNECTOR_UPDATE"
    EXTERNAL_TWO_FACTOR_DISABLE = "EXTERNAL_TWO_FACTOR_DISABLE"
    EXTERNAL_TWO_FACTOR_ENABLE = "EXTERNAL_TWO_FACTOR_ENABLE"
    FILTER_FORWARD = "FILTER_FORWARD"
    FORWARDING_CHANGE = "FORWARDING_CHANGE"
    IDENTITY_BCC_CHANGE = "IDENTITY_BCC_CHANGE"
    MAILBOX_SHARE_DELETE = "MAILBOX_SHARE_DELETE"
    MAILBOX_SHARE_SET = "MAILBOX_SHARE_SET"
    MESSAGES_READ = "MESSAGES_READ"
    MESSAGES_TRANSFER = "MESSAGES_TRANSFER"
    MESSAGE_REDIRECT = "MESSAGE_REDIRECT"
    MESSAGE_SEND = "MESSAGE_SEND"
    NETWORK_BAN = "NETWORK_BAN"
    OAUTH_GRANT_CREATE = "OAUTH_GRANT_CREATE"
    OAUTH_GRANT_REVOKE = "OAUTH_GRANT_REVOKE"
    OAUTH_TOKEN_REPLAY = "OAUTH_TOKEN_REPLAY"  # noqa: S105 - a name
    PASSWORD_CHANGE = "PASSWORD_CHANGE"  # noqa: S105 - a name
    PASSWORD_GUESSING = "PASSWORD_GUESSING"  # noqa: S105 - a name
    PASSWORD_RESET = "PASSWORD_RESET"  # noqa: S105 - a name
    PUSH_CHANNEL_DELETE = "PUSH_CHANNEL_DELETE"
    PUSH_CHANNEL_SET = "PUSH_CHANNEL_SET"
    RECOVERY_CODES_CREATE = "RECOVERY_CODES_CREATE"
    RECOVERY_CODE_VERIFY = "RECOVERY_CODE_VERIFY"
    SESSION_TERMINATE = "SESSION_TERMINATE"
    SIEVE_FORWARD = "SIEVE_FORWARD"
    TOKEN_REVOKE = "TOKEN_REVOKE"  # noqa: S105 - a name
    TOTP_DISABLE = "TOTP_DISABLE"
    TOTP_ENABLE = "TOTP_ENABLE"
    TOTP_SETUP = "TOTP_SETUP"
    TOTP_VERIFY = "TOTP_VERIFY"
    TWO_FACTOR_DISABLE = "TWO_FACTOR_DISABLE"
    USER_IMPERSONATE = "USER_IMPERSONATE"
    WEBAUTHN_DELETE = "WEBAUTHN_DELETE"
    WEBAUTHN_REGISTER = "WEBAUTHN_REGISTER"
    WEBAUTHN_VERIFY = "WEBAUTHN_VERIFY"
    WEBHOOK_CREATE = "WEBHOOK_CREATE"
    WEBHOOK_DELETE = "WEBHOOK_DELETE"
    WEBHOOK_UPDATE = "WEBHOOK_UPDATE"


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


_SECURITY_EVENT_TYPE_BY_ACTION = {  # by action and success of the entry of the security log
    (SecurityEventAction.AUTHENTICATE, True): EventType.SIGN_IN_SUCCEEDED,
    (SecurityEventAction.AUTHENTICATE, False): EventType.SIGN_IN_FAILED,
    (SecurityEventAction.API_KEY_USE, False): EventType.SIGN_IN_FAILED,
    (SecurityEventAction.TOTP_VERIFY, False): EventType.SIGN_IN_FAILED,
    (SecurityEventAction.WEBAUTHN_VERIFY, False): EventType.SIGN_IN_FAILED,
    (SecurityEventAction.USER_IMPERSONATE, True): EventType.IMPERSONATION_STARTED,
    (SecurityEventAction.PASSWORD_CHANGE, True): EventType.PASSWORD_CHANGED,
    (SecurityEventAction.PASSWORD_RESET, True): EventType.PASSWORD_RESET,
    (SecurityEventAction.FORWARDING_CHANGE, True): EventType.FORWARDING_CHANGED,
    (SecurityEventAction.TOTP_ENABLE, True): EventType.TOTP_ENABLED,
    (SecurityEventAction.TOTP_DISABLE, True): EventType.TOTP_DISABLED,
    (SecurityEventAction.EXTERNAL_TWO_FACTOR_ENABLE, True): EventType.EXTERNAL_TWO_FACTOR_ENABLED,
    (SecurityEventAction.EXTERNAL_TWO_FACTOR_DISABLE, True): EventType.EXTERNAL_TWO_FACTOR_DISABLED,
    (SecurityEventAction.WEBAUTHN_REGISTER, True): EventType.WEBAUTHN_REGISTERED,
    (SecurityEventAction.WEBAUTHN_DELETE, True): EventType.WEBAUTHN_DELETED,
    (SecurityEventAction.TWO_FACTOR_DISABLE, True): EventType.TWO_FACTOR_DISABLED,
    (SecurityEventAction.RECOVERY_CODES_CREATE, True): EventType.RECOVERY_CODES_CREATED,
    (SecurityEventAction.SESSION_TERMINATE, True): EventType.SESSION_TERMINATED,
    (SecurityEventAction.TOKEN_REVOKE, True): EventType.TOKEN_REVOKED,
    (SecurityEventAction.APP_PASSWORD_CREATE, True): EventType.APP_PASSWORD_CREATED,
    (SecurityEventAction.APP_PASSWORD_UPDATE, True): EventType.APP_PASSWORD_UPDATED,
    (SecurityEventAction.APP_PASSWORD_DELETE, True): EventType.APP_PASSWORD_DELETED,
    (SecurityEventAction.OAUTH_GRANT_CREATE, True): EventType.OAUTH_GRANT_CREATED,
    (SecurityEventAction.OAUTH_GRANT_REVOKE, True): EventType.OAUTH_GRANT_REVOKED,
    (SecurityEventAction.API_KEY_CREATE, True): EventType.API_KEY_CREATED,
    (SecurityEventAction.API_KEY_UPDATE, True): EventType.API_KEY_UPDATED,
    (SecurityEventAction.API_KEY_DELETE, True): EventType.API_KEY_DELETED,
}
SECURITY_EVENT_TYPES = frozenset(  # each is about an entry of the security log
    {*_SECURITY_EVENT_TYPE_BY_ACTION.values(), EventType.SECURITY_EVENT}
)


def security_event_type(action: SecurityEventAction, result: SecurityEventResult) -> EventType:
    """Return the type of the event of an entry of the security log."""
    return _SECURITY_EVENT_TYPE_BY_ACTION.get(
        (action, result is SecurityEventResult.SUCCESS), EventType.SECURITY_EVENT
    )
