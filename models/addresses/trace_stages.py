"""Stages of the address trace."""

from enum import StrEnum


class TraceStage(StrEnum):
    """The kind of record that decides about mail for an address."""

    RECIPIENT_REWRITE = "RECIPIENT_REWRITE"
    ALIAS_DOMAIN = "ALIAS_DOMAIN"
    BACKUP_MX = "BACKUP_MX"
    ADDRESS = "ADDRESS"
    RESOURCE = "RESOURCE"
    USER = "USER"
    SENDER_RULE = "SENDER_RULE"
    FILTER = "FILTER"
    AUTOREPLY = "AUTOREPLY"
