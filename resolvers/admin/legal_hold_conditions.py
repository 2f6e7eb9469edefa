"""Conditions of the lists of copies and accesses of legal holds."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement
from sqlmodel import col

from models.admin.legal_holds import CopyOrigin, HeldCopy, LegalHoldAccess, LegalHoldAccessAction
from resolvers.list_orders import OwnerPageKey
from resolvers.sql_text import contains_text_sql


@dataclass(frozen=True, slots=True)
class HeldCopyConditions:
    """Conditions of a list of copies; all must hold. No index answers them."""

    sender: str | None = None  # a text in the name or address of the author
    subject: str | None = None  # a text in the subject
    received_since: datetime | None = None
    received_before: datetime | None = None
    origins: tuple[CopyOrigin, ...] | None = None  # any of them


@dataclass(frozen=True, slots=True)
class HeldCopyPageKey(OwnerPageKey):
    """A page of the copies of a legal hold that meet the conditions."""

    conditions: HeldCopyConditions = HeldCopyConditions()


@dataclass(frozen=True, slots=True)
class LegalHoldAccessConditions:
    """Conditions of a list of accesses; all must hold."""

    action: LegalHoldAccessAction | None = None
    since: datetime | None = None
    before: datetime | None = None


@dataclass(frozen=True, slots=True)
class LegalHoldAccessPageKey(OwnerPageKey):
    """A page of the accesses to a legal hold that meet the conditions."""

    conditions: LegalHoldAccessConditions = LegalHoldAccessConditions()


def copy_clauses(conditions: HeldCopyConditions) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses for copies. Raises InvalidInput if a text is too long."""
    clauses: list[ColumnElement[bool]] = []
    if conditions.sender:
        clauses.append(
            contains_text_sql(col(HeldCopy.from_name), conditions.sender)
            | contains_text_sql(col(HeldCopy.from_address), conditions.sender)
        )
    if conditions.subject:
        clauses.append(contains_text_sql(col(HeldCopy.subject), conditions.subject))
    if conditions.received_since is not None:
        clauses.append(col(HeldCopy.received_at) >= conditions.received_since)
    if conditions.received_before is not None:
        clauses.append(col(HeldCopy.received_at) < conditions.received_before)
    if conditions.origins is not None:
        clauses.append(col(HeldCopy.origin).in_(conditions.origins))
    return clauses


def access_clauses(conditions: LegalHoldAccessConditions) -> list[ColumnElement[bool]]:
    """Return the WHERE clauses for accesses."""
    clauses: list[ColumnElement[bool]] = []
    if conditions.action is not None:
        clauses.append(col(LegalHoldAccess.action) == conditions.action)
    if conditions.since is not None:
        clauses.append(col(LegalHoldAccess.at) >= conditions.since)
    if conditions.before is not None:
        clauses.append(col(LegalHoldAccess.at) < conditions.before)
    return clauses
