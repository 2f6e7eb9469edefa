"""Types of events: of the journal, subscriptions, webhooks and notifications."""

from enum import StrEnum


class EventType(StrEnum):
    """The type of an event.

    The journal stores it; subscriptions, webhooks, notifications and push use the same words.
    """

    MAILBOX_CREATED = "MAILBOX_CREATED"
    MAILBOX_UPDATED = "MAILBOX_UPDATED"
    MAILBOX_RENAMED = "MAILBOX_RENAMED"
    MAILBOX_DELETED = "MAILBOX_DELETED"
    MESSAGE_ADDED = "MESSAGE_ADDED"
    MESSAGE_RECEIVED = "MESSAGE_RECEIVED"
    MESSAGE_UPDATED = "MESSAGE_UPDATED"
    MESSAGE_MOVED = "MESSAGE_MOVED"
    MESSAGE_DELETED = "MESSAGE_DELETED"
    MESSAGE_RESTORED = "MESSAGE_RESTORED"
    MESSAGE_PURGED = "MESSAGE_PURGED"
    THREAD_CHANGED = "THREAD_CHANGED"
    LABEL_CHANGED = "LABEL_CHANGED"
    SAVED_SEARCH_CHANGED = "SAVED_SEARCH_CHANGED"
    SENDER_RULE_CHANGED = "SENDER_RULE_CHANGED"
    SUBMISSION_CHANGED = "SUBMISSION_CHANGED"
    SUBMISSION_SENT = "SUBMISSION_SENT"
    SUBMISSION_BOUNCED = "SUBMISSION_BOUNCED"
    FILE_CHANGED = "FILE_CHANGED"
    ADDRESS_CREATED = "ADDRESS_CREATED"
    ADDRESS_UPDATED = "ADDRESS_UPDATED"
    ADDRESS_DELETED = "ADDRESS_DELETED"
    ADDRESS_RESTORED = "ADDRESS_RESTORED"
    IDENTITY_CHANGED = "IDENTITY_CHANGED"
    USER_CREATED = "USER_CREATED"
    USER_UPDATED = "USER_UPDATED"
    USER_DELETED = "USER_DELETED"
    USER_RESTORED = "USER_RESTORED"
    USER_PURGED = "USER_PURGED"
    DOMAIN_CREATED = "DOMAIN_CREATED"
    DOMAIN_UPDATED = "DOMAIN_UPDATED"
    DOMAIN_DELETED = "DOMAIN_DELETED"
    TASK_CHANGED = "TASK_CHANGED"
    SETTING_CHANGED = "SETTING_CHANGED"
    KEY_VALUE_CHANGED = "KEY_VALUE_CHANGED"
    LIMIT_REACHED = "LIMIT_REACHED"
    AUTOREPLY_CHANGED = "AUTOREPLY_CHANGED"
    AUTOREPLY_ENABLED = "AUTOREPLY_ENABLED"
    AUTOREPLY_DISABLED = "AUTOREPLY_DISABLED"
    FILTER_CHANGED = "FILTER_CHANGED"
    FILTER_MATCHED = "FILTER_MATCHED"
    CONNECTOR_CHANGED = "CONNECTOR_CHANGED"
    RELAY_HOST_CHANGED = "RELAY_HOST_CHANGED"
    TRANSPORT_CHANGED = "TRANSPORT_CHANGED"
    TLS_POLICY_CHANGED = "TLS_POLICY_CHANGED"
    FORWARDING_HOST_CHANGED = "FORWARDING_HOST_CHANGED"
    COMPOSE_REQUESTED = "COMPOSE_REQUESTED"
    CERTIFICATE_CHANGED = "CERTIFICATE_CHANGED"
    SIEVE_CHANGED = "SIEVE_CHANGED"
    SIEVE_FAILED = "SIEVE_FAILED"
    QUARANTINE_CHANGED = "QUARANTINE_CHANGED"
    QUARANTINE_HELD = "QUARANTINE_HELD"
    QUARANTINE_RELEASED = "QUARANTINE_RELEASED"
    QUARANTINE_DELETED = "QUARANTINE_DELETED"
    QUARANTINE_EXPIRED = "QUARANTINE_EXPIRED"
    DKIM_KEY_CREATED = "DKIM_KEY_CREATED"
    DKIM_KEY_UPDATED = "DKIM_KEY_UPDATED"
    DKIM_KEY_DELETED = "DKIM_KEY_DELETED"
    SIGN_IN_SUCCEEDED = "SIGN_IN_SUCCEEDED"
    SIGN_IN_FAILED = "SIGN_IN_FAILED"
    IMPERSONATION_STARTED = "IMPERSONATION_STARTED"
    PASSWORD_CHANGED = "PASSWORD_CHANGED"  # noqa: S105 - a type of events
    PASSWORD_RESET = "PASSWORD_RESET"  # noqa: S105 - a type of events
    FORWARDING_CHANGED = "FORWARDING_CHANGED"
    TOTP_ENABLED = "TOTP_ENABLED"
    TOTP_DISABLED = "TOTP_DISABLED"
    EXTERNAL_TWO_FACTOR_ENABLED = "EXTERNAL_TWO_FACTOR_ENABLED"
    EXTERNAL_TWO_FACTOR_DISABLED = "EXTERNAL_TWO_FACTOR_DISABLED"
    WEBAUTHN_REGISTERED = "WEBAUTHN_REGISTERED"
    WEBAUTHN_DELETED = "WEBAUTHN_DELETED"
    TWO_FACTOR_DISABLED = "TWO_FACTOR_DISABLED"
    RECOVERY_CODES_CREATED = "RECOVERY_CODES_CREATED"
    SESSION_TERMINATED = "SESSION_TERMINATED"
    TOKEN_REVOKED = "TOKEN_REVOKED"  # noqa: S105 - a type of events
    APP_PASSWORD_CREATED = "APP_PASSWORD_CREATED"  # noqa: S105 - a type of events
    APP_PASSWORD_UPDATED = "APP_PASSWORD_UPDATED"  # noqa: S105 - a type of events
    APP_PASSWORD_DELETED = "APP_PASSWORD_DELETED"  # noqa: S105 - a type of events
    API_KEY_CREATED = "API_KEY_CREATED"
    API_KEY_UPDATED = "API_KEY_UPDATED"
    API_KEY_DELETED = "API_KEY_DELETED"
    SECURITY_EVENT = "SECURITY_EVENT"
    PING = "PING"
    CHANGES_MISSED = "CHANGES_MISSED"
    RESYNC = "RESYNC"


def _types_with_prefix(prefix: str) -> frozenset[EventType]:
    return frozenset(each for each in EventType if each.startswith(prefix))


ADDED_MESSAGE_EVENT_TYPES = frozenset({EventType.MESSAGE_ADDED, EventType.MESSAGE_RECEIVED})
SUBMISSION_EVENT_TYPES = _types_with_prefix("SUBMISSION_")
ADDRESS_EVENT_TYPES = _types_with_prefix("ADDRESS_")
USER_EVENT_TYPES = _types_with_prefix("USER_")
DOMAIN_EVENT_TYPES = _types_with_prefix("DOMAIN_")
SECURITY_EVENT_TYPES = frozenset(  # each is about an entry of the security log
    {
        EventType.SIGN_IN_SUCCEEDED,
        EventType.SIGN_IN_FAILED,
        EventType.IMPERSONATION_STARTED,
        EventType.PASSWORD_CHANGED,
        EventType.PASSWORD_RESET,
        EventType.FORWARDING_CHANGED,
        EventType.TOTP_ENABLED,
        EventType.TOTP_DISABLED,
        EventType.EXTERNAL_TWO_FACTOR_ENABLED,
        EventType.EXTERNAL_TWO_FACTOR_DISABLED,
        EventType.WEBAUTHN_REGISTERED,
        EventType.WEBAUTHN_DELETED,
        EventType.TWO_FACTOR_DISABLED,
        EventType.RECOVERY_CODES_CREATED,
        EventType.SESSION_TERMINATED,
        EventType.TOKEN_REVOKED,
        EventType.APP_PASSWORD_CREATED,
        EventType.APP_PASSWORD_UPDATED,
        EventType.APP_PASSWORD_DELETED,
        EventType.API_KEY_CREATED,
        EventType.API_KEY_UPDATED,
        EventType.API_KEY_DELETED,
        EventType.SECURITY_EVENT,
    }
)
# Events that are not in the journal: only webhooks receive them.
WEBHOOK_ONLY_EVENT_TYPES = frozenset(
    {EventType.PING, EventType.CHANGES_MISSED, EventType.FILTER_MATCHED}
)

_SECURITY_EVENT_TYPE_BY_ACTION = {  # by action and success of the entry of the security log
    ("authenticate", True): EventType.SIGN_IN_SUCCEEDED,
    ("authenticate", False): EventType.SIGN_IN_FAILED,
    ("api key", False): EventType.SIGN_IN_FAILED,
    ("totp check", False): EventType.SIGN_IN_FAILED,
    ("webauthn check", False): EventType.SIGN_IN_FAILED,
    ("act as", True): EventType.IMPERSONATION_STARTED,
    ("password change", True): EventType.PASSWORD_CHANGED,
    ("password reset", True): EventType.PASSWORD_RESET,
    ("forwarding change", True): EventType.FORWARDING_CHANGED,
    ("totp enable", True): EventType.TOTP_ENABLED,
    ("totp disable", True): EventType.TOTP_DISABLED,
    ("custom enable", True): EventType.EXTERNAL_TWO_FACTOR_ENABLED,
    ("custom disable", True): EventType.EXTERNAL_TWO_FACTOR_DISABLED,
    ("webauthn register", True): EventType.WEBAUTHN_REGISTERED,
    ("webauthn delete", True): EventType.WEBAUTHN_DELETED,
    ("2fa disable", True): EventType.TWO_FACTOR_DISABLED,
    ("recovery codes create", True): EventType.RECOVERY_CODES_CREATED,
    ("session kick", True): EventType.SESSION_TERMINATED,
    ("token revoke", True): EventType.TOKEN_REVOKED,
    ("app password create", True): EventType.APP_PASSWORD_CREATED,
    ("app password update", True): EventType.APP_PASSWORD_UPDATED,
    ("app password delete", True): EventType.APP_PASSWORD_DELETED,
    ("api key create", True): EventType.API_KEY_CREATED,
    ("api key update", True): EventType.API_KEY_UPDATED,
    ("api key delete", True): EventType.API_KEY_DELETED,
}


def security_event_type(action: str, result: str) -> EventType:
    """Return the type of the event of an entry of the security log."""
    return _SECURITY_EVENT_TYPE_BY_ACTION.get(
        (action, result == "success"), EventType.SECURITY_EVENT
    )


def submission_event_type(state: str) -> EventType:
    """Return the type of the event of a submission that reached a state."""
    if state == "SENT":
        return EventType.SUBMISSION_SENT
    if state in ("PARTIAL", "FAILED"):
        return EventType.SUBMISSION_BOUNCED
    return EventType.SUBMISSION_CHANGED
