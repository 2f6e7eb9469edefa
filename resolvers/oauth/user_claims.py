"""Claims about a user: in ID tokens and in the response of the userinfo endpoint."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import Select, select
from sqlmodel import col

from models.addresses.tables import Address
from models.oauth.tables import OauthScope
from models.store.columns import ColumnRow
from models.users.tables import User

CLAIM_COLUMNS: tuple[Any, ...] = (
    col(User.id),
    col(User.name),
    col(User.username),
    col(Address.display_address),
)


def join_main_address(statement: Select[*tuple[Any, ...]]) -> Select[*tuple[Any, ...]]:
    """Join the main addresses to a select of users; users without one stay."""
    is_main_address = (col(Address.user_id) == col(User.id)) & col(Address.main)
    return statement.outerjoin(Address, is_main_address)


def claims_sql(user_id: int) -> Select[*tuple[Any, ...]]:
    """SQL: the name, the username and the main address of a user."""
    return join_main_address(select(*CLAIM_COLUMNS)).where(col(User.id) == user_id)


def user_claims(row: ColumnRow, subject: str, scopes: Collection[str]) -> dict[str, Any]:
    """Return the claims of a row with CLAIM_COLUMNS that the scopes allow.

    An address of this platform is verified. Claims without a value are absent.
    """
    claims: dict[str, Any] = {"sub": subject}
    if OauthScope.PROFILE in scopes:
        claims["preferred_username"] = row.username
        if row.name:
            claims["name"] = row.name
    if OauthScope.EMAIL in scopes and row.display_address:
        claims |= {"email": row.display_address, "email_verified": True}
    return claims
