"""Release and delete quarantined messages, and set how often users get a digest."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from sqlalchemy import delete, select
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.delivery import quarantine_release, recipient_rewrites
from mail.delivery.quarantine_release import Ready
from mail.envelope.local_recipient import Recipient
from mail.recipients.address_resolution import KEY
from mail.scanners import training_worker
from mail.storage import message_content
from mail.storage.blobs.blob_writer import Gone
from mail.storage.message_content import gathered
from models.errors import (
    Forbidden,
    Invalid,
    NotFound,
    OverQuota,
    RateLimited,
    Refused,
    all_found,
)
from models.events.journal import PLATFORM, ChangeKind
from models.filters.sieve_scripts import scripted
from models.filters.tables import filtered
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import Turn
from models.spam.quarantine import QuarantineItem
from models.spam.sender_rules import SenderAction
from models.store.columns import Picked, picked
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import Frequency, User
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context, Needs
from resolvers.spam import sender_rule_mutations
from resolvers.spam.quarantine import by_ids, visible
from resolvers.spam.sender_rule_mutations import NewRules, Whom
from resolvers.users import managed_objects
from resolvers.users.selection import Users, chosen
from resolvers.users.user_locks import changing

MOST = 100  # messages per call
SHOWN = ("id", "user_id", "sender", "recipient", "from_address", "virus", "created_at")
OTHERS = Needs(
    role=Role.DOMAIN_ADMIN, scope=Scope.MASTER, admin_permission=AdminPermission.QUARANTINE
)
RULES = Needs(
    user_permission=UserPermission.SPAM_POLICY, admin_permission=AdminPermission.SPAM_POLICY
)


@dataclass(frozen=True, slots=True)
class Beside:
    """What else happens to released messages.

    With `learn_ham` the spam filter learns them as ham. With `allow_sender` an allow rule for
    each sender is created for the owner.
    """

    learn_ham: bool = True
    allow_sender: bool = False


async def release(ctx: Context, ids: Sequence[int], beside: Beside) -> list[int]:
    """Release quarantined messages, all or none, and return the message IDs in order.

    The filters of the user decide on the mailbox. A message that they redirect without a copy
    has no ID. Raises NotFound; OverQuota if a message does not fit and RateLimited if it can't
    be redirected, both with the index; Forbidden.
    """
    if len(ids) > MOST:
        raise Invalid(f"at most {MOST} at once", constraint="max", path=["ids"])
    ids = list(dict.fromkeys(ids))
    rows = await _chosen(ctx, ids)
    _check(ctx, rows, beside)
    owners = sorted({row.user_id for row in rows})
    accounts = await _accounts(ctx, owners)
    all_found([row.user_id for row in rows], accounts)

    async def ready(*, again: bool) -> list[Ready]:
        return [await _prepared(ctx, row, accounts[row.user_id], again=again) for row in rows]

    try:
        return await _released(ctx, ids, await ready(again=False), beside)
    except Gone:
        return await _released(ctx, ids, await ready(again=True), beside)
    except NotFound as gone:
        if gone.path != ["mailbox"]:
            raise
        return await _released(
            ctx, ids, await ready(again=False), beside
        )  # a mailbox was deleted meanwhile


async def _chosen(ctx: Context, ids: Sequence[int]) -> list[Picked]:
    """Load quarantined messages. Raises NotFound, and Forbidden for those of other users."""
    found = await by_ids(ctx, list(ids))
    rows = [row for row in found if row]
    all_found(ids, {row.id for row in rows})
    if any(row.user_id != ctx.viewer.user_id for row in rows):
        ctx.viewer.require(OTHERS)
    return rows


def _check(ctx: Context, rows: Sequence[Picked], beside: Beside) -> None:
    """Raise Forbidden if the viewer may not release a virus or create sender rules."""
    if ctx.viewer.role is Role.USER and any(row.virus for row in rows):
        text = "what holds a virus is let in by an administrator"
        raise Forbidden(text, requires=Role.DOMAIN_ADMIN, path=["ids"])
    if beside.allow_sender:
        with _at("allowSender"):
            ctx.viewer.require(RULES)


@contextmanager
def _at(name: str) -> Generator[None]:
    """Set the path of refusals raised inside to one input field."""
    try:
        yield
    except Refused as refusal:
        refusal.path = [name]
        raise


async def _accounts(ctx: Context, owners: Sequence[int]) -> dict[int, Picked]:
    """Load what a delivery needs of these users and their INBOX, by user ID."""
    asked = (
        select(
            *picked(User, ("id", "tenant_id", "targets", "role")),
            col(Mailbox.id).label("box"),
            KEY.label("key"),
            scripted(col(User.id)).label("scripted"),
            filtered(col(User.id)).label("filtered"),
        )
        .join(Mailbox, col(Mailbox.user_id) == col(User.id))
        .where(
            col(User.id).in_(owners),
            col(User.deleted_at).is_(None),
            col(Mailbox.special_use) == SpecialUse.INBOX,
        )
    )
    return {row.id: row for row in await ctx.read(asked)}


async def _prepared(ctx: Context, row: Picked, account: Picked, *, again: bool) -> Ready:
    """Read a quarantined message and store the blobs of its delivery."""
    (held,) = await message_content.read_sources(
        ctx.world, [row], ctx.read, message_content.QUARANTINE
    )
    raw = await gathered(held.whole())
    instead = await recipient_rewrites.rewritten(ctx.world, [row.recipient])
    to = Recipient(
        account.id,
        account.tenant_id,
        account.box,
        0,
        row.recipient,
        account.key,
        domain_id=row.domain_id,
        instead=instead[row.recipient].address if row.recipient in instead else None,
        copied=True,
        scripted=account.scripted,
        filtered=account.filtered,
        forwards=bool(account.targets),
        role=account.role,
    )
    return await quarantine_release.ready(ctx.world, row, raw, to, again=again)


async def _released(
    ctx: Context, ids: Sequence[int], ready: Sequence[Ready], beside: Beside
) -> list[int]:
    """Deliver prepared messages and delete their items. Returns the message IDs in order."""
    streams = {one.todo.judged.to.user_id for one in ready}
    if any(one.goes_out for one in ready):
        streams.add(PLATFORM)
    async with ctx.write(*streams) as session:
        rows = await _held(ctx, session, ids)
        by = {row.id: ctx.viewer.user_id == row.user_id for row in rows}
        deliver = partial(_delivered, ready=ready, own=[by[key] for key in ids])
        placed = await ctx.world.join(session, deliver)
        keys = [key for key in placed if key is not None]
        if beside.learn_ham:  # the release of a virus says nothing about spam
            ill = {row.id for row in rows if row.virus}
            clean = [key for key, item in zip(placed, ids, strict=True) if key and item not in ill]
            await ctx.world.join(session, lambda turn: training_worker.released(turn, clean))
        if beside.allow_sender:
            await _allow(ctx, rows)
        await _gone(ctx, session, rows, ("quarantineRelease", "released"))
    return keys


def _delivered(turn: Turn, ready: Sequence[Ready], own: Sequence[bool]) -> list[int | None]:
    """Deliver messages in a transaction. Returns their IDs; None for a redirected one.

    Raises OverQuota or RateLimited with the index of the message.
    """
    keys = list[int | None]()
    for index, (one, is_own) in enumerate(zip(ready, own, strict=True)):
        try:
            by = "its owner" if is_own else "an administrator"
            placed = quarantine_release.enter(turn, one, by)
        except OverQuota as full:
            full.path, full.index = ["ids"], index
            raise
        except RateLimited as full:
            refusal = RateLimited(full.message, retry_after=full.retry_after)
            refusal.path, refusal.index = ["ids"], index
            raise refusal from full
        keys.append(placed.message_id if placed else None)
    return keys


async def _allow(ctx: Context, rows: Sequence[Picked]) -> None:
    """Create allow rules for the authors, or for the envelope senders where From is empty."""
    for user_id in sorted({row.user_id for row in rows}):
        theirs = [row for row in rows if row.user_id == user_id]
        senders = dict.fromkeys(row.from_address or row.sender for row in theirs)
        patterns = [sender for sender in senders if sender]
        if patterns:
            with _at("allowSender"):
                new = NewRules(SenderAction.ALLOW, patterns)
                await sender_rule_mutations.create(ctx, Whom(user_id=user_id), new)


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete quarantined messages, all or none. Raises NotFound or Forbidden."""
    rows = await _chosen(ctx, ids)
    async with ctx.write(*{row.user_id for row in rows}) as session:
        rows = await _held(ctx, session, ids)
        await _gone(ctx, session, rows, ("quarantineDelete", "deleted"))


async def _held(ctx: Context, session: AsyncSession, ids: Sequence[int]) -> list[Picked]:
    """Load visible quarantined messages inside the transaction. Raises NotFound."""
    these = ids, visible(ctx)
    return await managed_objects.held(ctx, session, QuarantineItem, SHOWN, these)


async def _gone(
    ctx: Context, session: AsyncSession, rows: Sequence[Picked], what: tuple[str, str]
) -> None:
    """Delete quarantined messages and record the change.

    Changes to messages of other users are also written to the admin log.
    """
    mutation, did = what
    keys = [row.id for row in rows]
    connection = await session.connection()
    await connection.execute(delete(QuarantineItem).where(col(QuarantineItem.id).in_(keys)))
    told = {
        user_id: [
            (ChangeKind.QUARANTINE_CHANGED, [row.id for row in rows if row.user_id == user_id])
        ]
        for user_id in {row.user_id for row in rows}
    }
    await ctx.record_all(session, told, did=did)
    done = (
        Done(mutation, "QuarantineItem", row.id, row.domain_id, _logged(row))
        for row in rows
        if row.user_id != ctx.viewer.user_id
    )
    await admin_log.note(ctx, session, *done)


def _logged(row: Picked) -> dict[str, str]:
    """Return the values of a quarantined message for the admin log."""
    return {"sender": row.sender, "recipient": row.recipient}


async def set_notification(ctx: Context, users: Users, often: Frequency) -> list[int]:
    """Set how often these users get a quarantine digest. Returns their IDs.

    Raises Forbidden if other users are selected without the permission QUARANTINE.
    """
    rows = await chosen(ctx, users)
    if any(row.id != ctx.viewer.user_id for row in rows):
        ctx.viewer.require(OTHERS)
    async with changing(ctx, users, "quarantineNotificationSet") as held:
        for row in held.rows:
            held.set(row, quarantine_notification=often)
    return [row.id for row in held.rows]
