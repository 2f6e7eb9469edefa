"""Revoke certificates at their ACME authority (RFC 8555, section 7.6)."""

import asyncio
import logging
from collections.abc import Sequence

from sqlalchemy import update
from sqlmodel import col

from mail.tls import acme_client
from mail.tls.acme_client import Failure, Reason
from models.certificates import Certificate
from models.errors import Conflict, Invalid, Refused, Unavailable
from models.events.journal import PLATFORM, ChangeKind
from models.runtime.environment import World
from models.store.columns import Picked
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.certificates import acme_accounts
from resolvers.context import Context

log = logging.getLogger(__name__)

MOST = 20  # per call, since a client waits for the authority
EACH = 30.0  # seconds per certificate


def revocable(ctx: Context, rows: Sequence[Picked]) -> list[Picked]:
    """Return the certificates that can be revoked: issued and not expired.

    Raises InvalidInput if there are too many, and Conflict if ACME did not issue one or its
    terms are not agreed to.
    """
    if len(rows) > MOST:
        text = f"at most {MOST} are revoked at a time"
        raise Invalid(text, constraint="max", path=["ids"])
    if not ctx.world.options.acme_terms_agreed:
        text = "the terms of the authority are not agreed to: acme.termsAgreed"
        raise Conflict(text, path=["revoke"])
    for nth, row in enumerate(rows):
        if row.chain and not row.acme_directory:
            text = "ACME has not made it: whoever issued it can revoke it"
            raise Conflict(text, path=["ids"], index=nth)
    return [row for row in rows if row.chain and row.not_after > ctx.world.now()]


async def revoke(ctx: Context, rows: Sequence[Picked], reason: Reason) -> None:
    """Revoke certificates, one after another.

    Raises InvalidInput if the authority refuses the reason, and ServiceUnavailable if it does
    not revoke one. Certificates before it stay revoked, which their state shows.
    """
    for nth, row in enumerate(rows):
        facts = {"serverName": row.server_name, "reason": reason}
        try:
            async with asyncio.timeout(EACH):
                await _revoked(ctx.world, row, reason)
        except (Failure, TimeoutError) as problem:
            said = problem if isinstance(problem, Failure) else Failure("it takes too long")
            log.warning("certificate not revoked", extra={**facts, "why": str(said)})
            await _told(ctx, rows[:nth], reason)
            raise _refusal(row, said, rows[:nth]) from None
        log.info("certificate revoked", extra=facts)


async def _revoked(world: World, row: Picked, reason: Reason) -> None:
    """Revoke a certificate with the account that ordered it. Raises acme_client.Failure."""
    account = await acme_accounts.account(world, row.acme_directory)
    if account.url is None:
        raise Failure("its authority does not know our account any more")
    server = acme_accounts.server(world, row.acme_directory)
    async with acme_client.connect(server, account.key) as client:
        await asyncio.to_thread(client.enter, account.url, "")
        await asyncio.to_thread(client.revoke, row.chain, reason)


def _refusal(row: Picked, problem: Failure, before: Sequence[Picked]) -> Refused:
    text = f"{row.server_name} was not revoked, and nothing is deleted: {problem}"
    if before:
        text += f"; revoked by now: {', '.join(one.server_name for one in before)}"
    if problem.code == acme_client.UNREASONABLE:
        return Invalid(text, constraint="reason", path=["revoke"])
    return Unavailable(text, component="acme")


async def _told(ctx: Context, rows: Sequence[Picked], reason: Reason) -> None:
    """Store and log that these are revoked, in a transaction that the failure does not undo."""
    if not rows:
        return
    ids = [row.id for row in rows]
    async with ctx.world.write(PLATFORM) as session:
        now = ctx.world.now()
        these = update(Certificate).where(col(Certificate.id).in_(ids))
        state = f"revoked on {now:%Y-%m-%d}, {reason}, and not deleted yet"
        await (await session.connection()).execute(these.values(acme_state=state, updated_at=now))
        await ctx.record(session, PLATFORM, ChangeKind.CERTIFICATE_CHANGED, ids)
        done = (
            Done("certificateDelete", "Certificate", key, after={"revoked": reason}) for key in ids
        )
        await admin_log.note(ctx, session, *done)
