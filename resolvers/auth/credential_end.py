"""End the credentials that programs of a user have stored."""

from sqlalchemy import delete
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.application_passwords import ApplicationPassword
from models.auth.credentials import ApiKey


async def delete_application_passwords_and_api_keys(session: AsyncSession, user_id: int) -> None:
    """Delete all application passwords and API keys of a user who left the directory.

    The user gets access again by signing in, and not by a password that a program has kept. Call
    `drop_cached_credentials` after the transaction.
    """
    connection = await session.connection()
    for table in (ApplicationPassword, ApiKey):
        await connection.execute(delete(table).where(col(table.user_id) == user_id))
