"""ACME challenges that every process can answer (RFC 8555, http-01)."""

from datetime import timedelta

from sqlalchemy import delete, insert, or_, select
from sqlmodel import col

from mail.tls.acme_client import HttpChallenge
from models.certificates import AcmeChallenge, AcmeState
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from resolvers.certificates.acme_leases import update_leased_row_or_raise_lease_lost

CHALLENGE_LIFETIME = timedelta(hours=1)


async def store_challenges_and_set_validating(
    environment: Environment, certificate: ColumnRow, challenges: list[HttpChallenge]
) -> None:
    """Store the challenges, so that every process can answer them."""
    now = environment.now()
    answer_by_token = {challenge.token: challenge.key_authorization for challenge in challenges}
    common_values = {"certificate_id": certificate.id, "expires_at": now + CHALLENGE_LIFETIME}
    rows = [
        {"token": token, "answer": answer, **common_values}
        for token, answer in answer_by_token.items()
    ]
    async with environment.write_session(PLATFORM) as session:
        connection = await session.connection()
        is_replaced_or_expired = or_(
            col(AcmeChallenge.expires_at) < now, col(AcmeChallenge.token).in_(answer_by_token)
        )
        await connection.execute(delete(AcmeChallenge).where(is_replaced_or_expired))
        await update_leased_row_or_raise_lease_lost(
            environment, session, certificate, {"acme_state": AcmeState.VALIDATING}
        )
        if rows:
            await connection.execute(insert(AcmeChallenge), rows)


async def delete_challenges(environment: Environment, challenges: list[HttpChallenge]) -> None:
    """Delete the stored challenges."""
    is_token = col(AcmeChallenge.token).in_([challenge.token for challenge in challenges])
    async with environment.write_session() as session:
        await (await session.connection()).execute(delete(AcmeChallenge).where(is_token))


async def find_challenge_answer(environment: Environment, challenge_token: str) -> str | None:
    """Return the answer to an ACME challenge token, or None."""
    now = environment.now()
    statement = select(col(AcmeChallenge.answer)).where(
        col(AcmeChallenge.token) == challenge_token, col(AcmeChallenge.expires_at) > now
    )
    return next((str(row.answer) for row in await environment.database.read(statement)), None)
