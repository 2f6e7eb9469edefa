"""End access tokens, refresh tokens and codes of users together."""

from collections.abc import Collection
from typing import Any

from sqlalchemy import delete, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import AccessToken
from models.oauth.tables import OauthAuthorizationCode, OauthGrant, OauthRefreshToken


async def delete_tokens_of_users(session: AsyncSession, user_ids: Collection[int]) -> None:
    """Delete all access tokens, refresh tokens and codes of these users. The grants remain."""
    statement = delete(AccessToken).where(col(AccessToken.user_id).in_(user_ids))
    await (await session.connection()).execute(statement)
    await delete_refresh_tokens_of_users(session, user_ids)


async def delete_refresh_tokens_of_users(session: AsyncSession, user_ids: Collection[int]) -> None:
    """Delete all refresh tokens and codes of these users. The grants remain.

    Call it in each transaction that deletes all access tokens of users: otherwise their clients
    would get new ones.
    """
    grant_ids = select(col(OauthGrant.id)).where(col(OauthGrant.user_id).in_(user_ids))
    await _delete_of_grants(session, grant_ids)


async def delete_refresh_tokens_of_grants(
    session: AsyncSession, grant_ids: Collection[int]
) -> None:
    """Delete all refresh tokens and codes of these grants. The grants remain."""
    if grant_ids:
        await _delete_of_grants(session, grant_ids)


async def delete_grants_of_users(session: AsyncSession, user_ids: Collection[int]) -> None:
    """Delete the grants of these users, with all their codes and tokens."""
    statement = delete(OauthGrant).where(col(OauthGrant.user_id).in_(user_ids))
    await (await session.connection()).execute(statement)


async def _delete_of_grants(session: AsyncSession, grant_ids: Any) -> None:
    connection = await session.connection()
    for table in (OauthRefreshToken, OauthAuthorizationCode):
        await connection.execute(delete(table).where(col(table.grant_id).in_(grant_ids)))
