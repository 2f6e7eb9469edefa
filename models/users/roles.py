"""Roles of users, scopes of credentials, and delegated permissions."""

from enum import StrEnum
from functools import lru_cache


class Role(StrEnum):
    """A role. Each includes the rights of the ones before it."""

    PUBLIC = "PUBLIC"
    USER = "USER"
    DOMAIN_ADMIN = "DOMAIN_ADMIN"
    ADMIN = "ADMIN"
    ROOT = "ROOT"

    def includes(self, other: "Role") -> bool:
        """True if this role has all rights of the other one."""
        return ROLE_RANKS[self] >= ROLE_RANKS[other]

    def administers(self, other: "Role") -> bool:
        """True if a user of this role can administer another user of the role `other`."""
        if self is Role.ROOT:
            return True
        if self is Role.ADMIN:
            return other is not Role.ROOT
        return self is Role.DOMAIN_ADMIN and other is Role.USER


ROLE_RANKS = {role: rank for rank, role in enumerate(Role)}


class Scope(StrEnum):
    """What a credential can be used for."""

    FULL = "FULL"
    READ = "READ"
    MAIL_READ = "MAIL_READ"
    MAIL = "MAIL"
    SUBMIT = "SUBMIT"
    SETTINGS = "SETTINGS"
    IMAP = "IMAP"
    POP3 = "POP3"
    SMTP = "SMTP"
    SIEVE = "SIEVE"
    SCIM = "SCIM"


class AdminPermission(StrEnum):
    """A right of a DOMAIN_ADMIN over the users of its domains."""

    CONNECTORS = "CONNECTORS"
    QUARANTINE = "QUARANTINE"
    IMPERSONATE = "IMPERSONATE"
    WEBMAIL_ACCESS = "WEBMAIL_ACCESS"
    APP_PASSWORDS = "APP_PASSWORDS"
    BCC_RULES = "BCC_RULES"
    PUSH_CHANNELS = "PUSH_CHANNELS"
    FILTERS = "FILTERS"
    RATE_LIMITS = "RATE_LIMITS"
    SENDER_RULES = "SENDER_RULES"
    SPAM_POLICY = "SPAM_POLICY"
    ALLOWED_SENDERS = "ALLOWED_SENDERS"
    UNLIMITED_QUOTA = "UNLIMITED_QUOTA"
    PROTOCOL_ACCESS = "PROTOCOL_ACCESS"
    SUBMISSION_NETWORKS = "SUBMISSION_NETWORKS"
    ALIAS_DOMAINS = "ALIAS_DOMAINS"
    DOMAIN_DESCRIPTION = "DOMAIN_DESCRIPTION"


class UserPermission(StrEnum):
    """A right of a USER over its own account."""

    TEMPORARY_ADDRESSES = "TEMPORARY_ADDRESSES"
    TLS_POLICY = "TLS_POLICY"
    SENDER_RULES = "SENDER_RULES"
    SPAM_POLICY = "SPAM_POLICY"
    SUBADDRESS_ACTION = "SUBADDRESS_ACTION"
    CONNECTORS = "CONNECTORS"
    SYNC_RESET = "SYNC_RESET"
    QUARANTINE = "QUARANTINE"
    PREFERENCES_RESET = "PREFERENCES_RESET"
    QUARANTINE_ATTACHMENTS = "QUARANTINE_ATTACHMENTS"
    QUARANTINE_NOTIFICATION = "QUARANTINE_NOTIFICATION"
    APP_PASSWORDS = "APP_PASSWORDS"
    PUSH_CHANNELS = "PUSH_CHANNELS"


INCLUDED_SCOPES = {
    Scope.FULL: frozenset(Scope),
    Scope.READ: frozenset({Scope.READ, Scope.MAIL_READ}),
    Scope.MAIL: frozenset({Scope.MAIL, Scope.MAIL_READ}),
}


@lru_cache(256)
def expand_scopes(scopes: frozenset[Scope]) -> frozenset[Scope]:
    """Return the scopes and all scopes that they include."""
    return scopes.union(*(INCLUDED_SCOPES.get(scope, frozenset()) for scope in scopes))
