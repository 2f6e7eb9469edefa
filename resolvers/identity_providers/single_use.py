"""Responses and logout tokens of providers that were accepted before."""

from datetime import timedelta

from sqlalchemy import insert
from sqlalchemy.exc import IntegrityError

from models.identity_providers import UsedIdentityToken
from models.runtime.environment import Environment
from resolvers.auth.credential_status import secret_digest

RETENTION = timedelta(minutes=20)  # longer than a page or a logout token is valid


class UsedBefore(Exception):
    """The response or token was accepted before."""


async def mark_token_used_or_raise_used_before(environment: Environment, token: str) -> None:
    """Record that a nonce or the identifier of a logout token is used. Raises UsedBefore."""
    statement = insert(UsedIdentityToken).values(
        id=environment.new_id(),
        digest=secret_digest(token),
        expires_at=environment.now() + RETENTION,
    )
    try:
        async with environment.write_session() as session:
            await (await session.connection()).execute(statement)
    except IntegrityError as problem:
        raise UsedBefore from problem
