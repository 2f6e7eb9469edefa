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

    MASTER = "MASTER"
    READ = "READ"
    MAIL_READ = "MAIL_READ"
    MAIL = "MAIL"
    SUBMIT = "SUBMIT"
    SETTINGS = "SETTINGS"
    IMAP = "IMAP"
    POP3 = "POP3"
    SMTP = "SMTP"
    SIEVE = "SIEVE"


class AdminPermission(StrEnum):
    """A right of a DOMAIN_ADMIN over the users of its domains."""

    SYNCJOBS = "SYNCJOBS"
    QUARANTINE = "QUARANTINE"
    LOGIN_AS = "LOGIN_AS"
    WEBMAIL_ACCESS = "WEBMAIL_ACCESS"
    APP_PASSWDS = "APP_PASSWDS"
    BCC_MAPS = "BCC_MAPS"
    PUSHOVER = "PUSHOVER"
    FILTERS = "FILTERS"
    RATELIMIT = "RATELIMIT"
    SPAM_POLICY = "SPAM_POLICY"
    EXTEND_SENDER_ACL = "EXTEND_SENDER_ACL"
    UNLIMITED_QUOTA = "UNLIMITED_QUOTA"
    PROTOCOL_ACCESS = "PROTOCOL_ACCESS"
    SMTP_IP_ACCESS = "SMTP_IP_ACCESS"
    ALIAS_DOMAINS = "ALIAS_DOMAINS"
    DOMAIN_DESC = "DOMAIN_DESC"


class UserPermission(StrEnum):
    """A right of a USER over its own account."""

    SPAM_ALIAS = "SPAM_ALIAS"
    TLS_POLICY = "TLS_POLICY"
    SPAM_SCORE = "SPAM_SCORE"
    SPAM_POLICY = "SPAM_POLICY"
    DELIMITER_ACTION = "DELIMITER_ACTION"
    SYNCJOBS = "SYNCJOBS"
    CLIENT_RESET = "CLIENT_RESET"
    QUARANTINE = "QUARANTINE"
    PROFILE_RESET = "PROFILE_RESET"
    QUARANTINE_ATTACHMENTS = "QUARANTINE_ATTACHMENTS"
    QUARANTINE_NOTIFICATION = "QUARANTINE_NOTIFICATION"
    APP_PASSWDS = "APP_PASSWDS"
    PUSHOVER = "PUSHOVER"


INCLUDED_SCOPES = {
    Scope.MASTER: frozenset(Scope),
    Scope.READ: frozenset({Scope.READ, Scope.MAIL_READ}),
    Scope.MAIL: frozenset({Scope.MAIL, Scope.MAIL_READ}),
}


@lru_cache(256)
def expand_scopes(scopes: frozenset[Scope]) -> frozenset[Scope]:
    """Return the scopes and all scopes that they include."""
    return scopes.union(*(INCLUDED_SCOPES.get(scope, frozenset()) for scope in scopes))
