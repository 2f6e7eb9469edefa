"""Payloads of mutations that ran before, under an idempotency key."""

import hmac
from dataclasses import dataclass
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from models.errors import Conflict
from models.runtime.idempotency import IdempotentPayload
from resolvers.context import Context


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """A mutation with its input, and its idempotency key."""

    idempotency_key: str
    mutation_text: str

    def digest(self, secret: bytes) -> str:
        """Return an HMAC of the mutation, which tells it from others with the same key.

        The input can have a password, so a plain hash of the stored row could be guessed.
        """
        return hmac.digest(secret, self.mutation_text.encode(), "sha256").hex()


async def find_payload_or_refuse_reused_key(ctx: Context, request: IdempotentRequest) -> Any:
    """Return the stored payload of this key; None if it is new.

    Raises Conflict if the key was used for another mutation.
    """
    statement = select(col(IdempotentPayload.request_digest), col(IdempotentPayload.answer)).where(
        col(IdempotentPayload.principal) == ctx.viewer.principal,
        col(IdempotentPayload.key) == request.idempotency_key,
    )
    stored = next(iter(await ctx.read(statement)), None)
    if stored and stored.request_digest != request.digest(ctx.environment.signing_secret):
        raise Conflict(
            "The idempotency key was used for another mutation or input.",
            path=["options", "idempotencyKey"],
        )
    return stored and stored.answer


async def store_payload(ctx: Context, request: IdempotentRequest, payload: Any) -> None:
    """Store the payload in the transaction of the mutation: both are committed, or neither.

    Raises Conflict if a concurrent request has used the key.
    """
    row = IdempotentPayload(
        principal=ctx.viewer.principal,
        key=request.idempotency_key,
        request_digest=request.digest(ctx.environment.signing_secret),
        answer=payload,
        at=ctx.environment.now(),
    )
    try:
        async with ctx.write_session() as session:
            await session.exec(insert(IdempotentPayload).values(row.model_dump()))
    except IntegrityError as clash:  # a concurrent request has stored it
        raise Conflict(
            "A request with this idempotency key is in progress: retry later.", path=["options"]
        ) from clash
