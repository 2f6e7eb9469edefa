"""Create, update and delete the rows of identities."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail import mime
from mail.addresses.address_syntax import normal
from mail.compose import message_builder
from models.errors import Conflict, Forbidden, Invalid, LimitReached, NotFound, Problems, all_found
from models.events.journal import ChangeKind
from models.mailboxes.tables import HOLDING_USES
from models.store.columns import Picked, picked
from models.submission.identities import Identity
from models.users.roles import AdminPermission, Role
from resolvers.access import own
from resolvers.admin import admin_log
from resolvers.admin.admin_log import Done
from resolvers.context import Context, Needs
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.submission import identities
from resolvers.submission.identities import Sender, Standing, key_of
from resolvers.submission.sender_authorization import grants
from resolvers.users.selection import managed_all

MOST = 100  # of one account
COPIES = 20  # addresses of one identity
SIGNATURE = 64 << 10  # of the text and of the HTML
DIVERTING = frozenset({"bcc", "reply_to"})  # they send copies or replies to another person
EMPTY: dict[str, Any] = {  # of a new row
    "name": None, "preferred": False, "reply_to": None, "bcc": [], "signature_text": None,
    "signature_html": None, "mailbox_id": None,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Said:
    """New values of an identity by column. A column that is absent stays unchanged.

    If `changes_mailbox`, `mailbox_ref` is the new mailbox for copies, and None removes it.
    """

    values: Mapping[str, Any]
    mailbox: mailbox_loaders.Named | None = None
    boxed: bool = False
    at: Sequence[str] = ()


async def create(ctx: Context, user_id: int | None, address: str, said: Said) -> int:
    """Create the row of an identity and return its id. The default user is the viewer.

    Raises Forbidden if the user may not send as the address, Conflict if it has a row,
    LimitReached at 100 identities, Invalid, and NotFound if the viewer does not manage the user.
    """
    return await _put(ctx, own(ctx) if user_id is None else user_id, address, said, anew=True)


async def put(ctx: Context, address: str, said: Said) -> int:
    """Create or update the row of an identity of the viewer and return its id.

    Raises Forbidden if the viewer may not send as the address, LimitReached and Invalid.
    """
    return await _put(ctx, own(ctx), address, said, anew=False)


async def _put(ctx: Context, user_id: int, address: str, said: Said, *, anew: bool) -> int:
    address = message_builder.address(address, "address")
    if "*" in address:
        raise Invalid("a sender is no pattern", constraint="pattern", path=["address"])
    _permitted(ctx, [user_id], said)
    said = await _checked(said)
    async with ctx.write(user_id) as session:
        (user,) = await managed_all(ctx, [user_id], path="user")
        (there,) = [one for one in await identities.standings(ctx, [user_id]) if one]
        sender = await _sender(ctx, there, address)
        if anew and sender.row:
            raise Conflict("there is an identity of this address", path=["address"])
        await _write(ctx, session, [Target(user, there, sender)], said, "identityCreate")
    return sender.id


async def _sender(ctx: Context, there: Standing, address: str) -> Sender:
    """Return the present or future identity of an address.

    Raises Forbidden if the user can't send so.
    """
    (grant,) = await grants(ctx, [(there.account, address)])
    if grant is None:
        raise Forbidden("the user may not send as this address", path=["address"])
    form, own_row = normal(address), grant.own(there.account.id, address)
    for one in there.known.values():
        if one.form == form or (own_row and one.address_id == own_row.id):
            return one
    if own_row:
        return there.implied(own_row)
    return Sender(key_of(there.account.id, form), there.account.id, form, address, None)


async def change(ctx: Context, ids: Sequence[int], said: Said) -> None:
    """Update these identities, all or none. Raises NotFound, Invalid, Forbidden or LimitReached."""
    if not said.values and not said.boxed:
        raise Invalid("say what to change", constraint="required", path=said.at)
    keys = list(dict.fromkeys(ids))
    owners = {one.user_id for one in await _known(ctx, ids)}
    _permitted(ctx, owners, said)
    said = await _checked(said)
    async with ctx.write(*owners) as session:
        users = {user.id: user for user in await managed_all(ctx, owners, path="ids")}
        known = await _known(ctx, keys)
        if said.values.get("preferred") and len(known) > len(users):
            text = "one identity of a user is the default"
            raise Invalid(text, constraint="exclusive", path=[*said.at, "default"])
        standing = await identities.standings(ctx, list(users))
        there = {one.account.id: one for one in standing if one}
        targets = [Target(users[one.user_id], there[one.user_id], one) for one in known]
        await _write(ctx, session, targets, said, "identityUpdate")


async def _known(ctx: Context, ids: Sequence[int]) -> list[Sender]:
    found = [one for one in await identities.by_ids(ctx, list(ids)) if one]
    all_found(ids, {one.id for one in found})
    return found


async def remove(ctx: Context, ids: Sequence[int]) -> None:
    """Delete the rows of these identities, all or none. What follows from an address alone stays.

    Raises NotFound, and Conflict if an identity has no row.
    """
    owners = {one.user_id for one in await _known(ctx, ids)}
    async with ctx.write(*owners) as session:
        users = {user.id: user for user in await managed_all(ctx, owners, path="ids")}
        known = await _known(ctx, ids)
        for index, one in enumerate(known):
            if not one.row:
                text = "nothing was said of it: it is there as long as one may send as it"
                raise Conflict(text, path=["ids"], index=index)
        gone = delete(Identity).where(col(Identity.id).in_(ids))
        await (await session.connection()).execute(gone)
        told: dict[int, set[int]] = {user: set() for user in users}
        for one in known:
            told[one.user_id].add(one.id)
        log = {
            one.id: _done("identityDelete", users[one.user_id], one, _logged(one)) for one in known
        }
        await _tell(ctx, session, told, log)


def _permitted(ctx: Context, users: Collection[int], said: Said) -> None:
    """Raise Forbidden if the viewer may not divert copies or replies of other users."""
    others = set(users) - {ctx.viewer.user_id}
    if others and any(said.values.get(name) for name in DIVERTING):
        permission = AdminPermission.BCC_MAPS
        ctx.viewer.require(Needs(role=Role.DOMAIN_ADMIN, admin_permission=permission))


async def _checked(said: Said) -> Said:
    """Return the changes in stored form. Raises Invalid with all that is wrong."""
    problems, values, at = Problems(), dict(said.values), said.at
    with problems.caught():
        if values.get("name") is not None:
            text = values["name"].strip()
            values["name"] = (
                message_builder.line_of(text, [*at, "name"], message_builder.NAME) or None
            )
    with problems.caught():
        if values.get("reply_to") is not None:
            values["reply_to"] = _address(values["reply_to"], [*at, "replyTo"])
    with problems.caught():
        if "bcc" in values:
            values["bcc"] = _copies(values["bcc"] or (), [*at, "bcc"])
    for name, path in (("signature_text", "signatureText"), ("signature_html", "signatureHtml")):
        with problems.caught():
            if values.get(name) is not None:
                values[name] = message_builder.text_of(values[name], [*at, path], SIGNATURE) or None
    problems.settle()
    if html := values.get("signature_html"):
        values["signature_html"] = await asyncio.to_thread(_sanitised, html)
    return replace(said, values=values)


def _address(text: str, path: Sequence[str], index: int | None = None) -> str:
    try:
        return message_builder.address(text, path[-1], index)
    except Invalid as wrong:
        raise Invalid(wrong.message, constraint=wrong.constraint, path=path, index=index) from wrong


def _copies(given: Sequence[str], path: Sequence[str]) -> list[str]:
    if len(given) > COPIES:
        raise Invalid(f"at most {COPIES} addresses", constraint="max", path=path)
    found: dict[str, str] = {}
    for nth, text in enumerate(given):
        address = _address(text, path, nth)
        found.setdefault(address.casefold(), address)
    return list(found.values())


def _sanitised(html: str) -> str:
    """Return the HTML without scripts and other active content. Images stay, also remote ones."""
    return mime.sanitize(html, remote_images=True, cid_url=lambda cid: f"cid:{cid}").html


@dataclass(frozen=True, slots=True)
class Target:
    """An identity to write and its account. The stream of the account is locked."""

    user: Picked
    there: Standing
    sender: Sender


async def _write(
    ctx: Context, session: AsyncSession, targets: Sequence[Target], said: Said, mutation: str
) -> None:
    """Insert or update the rows, and record those that changed."""
    boxes = await _boxes(ctx, targets, said)
    connection = await session.connection()
    before = await _rows(ctx, targets)
    told: dict[int, set[int]] = {each.user.id: set() for each in targets}
    if said.values.get("preferred"):
        await _stand_back(session, told, targets)
    made, log = [], {}
    for each in targets:
        sender, row = each.sender, before.get(each.sender.id)
        after = _after(ctx, each, said, boxes)
        if row is None:
            made.append(after)
        elif all(getattr(row, name) == after[name] for name in after if name != "updated_at"):
            continue
        else:
            this = update(Identity).where(col(Identity.id) == sender.id)
            await connection.execute(this.values(after))
        told[each.user.id].add(sender.id)
        old = _logged(sender) if sender.row else None
        log[sender.id] = _done(mutation, each.user, sender, old, dict(said.values))
    if made:
        await _room(ctx, session, told, targets, made)
        await connection.execute(insert(Identity), made)
    await _tell(ctx, session, told, log)


def _after(
    ctx: Context, each: Target, said: Said, boxes: Mapping[int, int | None]
) -> dict[str, Any]:
    """Return the new column values; all columns if the identity has no row."""
    sender, now = each.sender, ctx.world.now()
    values = dict(said.values)
    if said.boxed:
        values["mailbox_id"] = boxes[each.user.id]
    if not sender.row:  # a row that exists is of an address that was lost
        values = {**EMPTY, **values, "id": sender.id, "user_id": each.user.id, "created_at": now}
    form = {"local": sender.form.local, "domain": sender.form.domain, "shown": sender.address}
    return {**values, **form, "updated_at": now}


async def _rows(ctx: Context, targets: Sequence[Target]) -> dict[int, Picked]:
    keys = [each.sender.id for each in targets]
    asked = select(*picked(Identity)).where(col(Identity.id).in_(keys))
    return {row.id: row for row in await ctx.read(asked)}


async def _boxes(ctx: Context, targets: Sequence[Target], said: Said) -> dict[int, int | None]:
    """Return the mailbox for copies of each account.

    Raises NotFound if an account has none such.
    """
    users = sorted({each.user.id for each in targets})
    if said.mailbox is None:
        return dict.fromkeys(users)
    name = said.mailbox
    rows = await mailbox_loaders.named(ctx, [(user, name) for user in users])
    for row in rows:
        if row is None:
            raise NotFound(str(name), path=[*said.at, "sentMailbox"])
        if row.special_use in HOLDING_USES:  # its messages are moved at a set time
            text = "this mailbox holds snoozed or scheduled messages: choose another one"
            raise Invalid(text, constraint="specialUse", path=[*said.at, "sentMailbox"])
    return {user: row.id if row else None for user, row in zip(users, rows, strict=True)}


async def _stand_back(
    session: AsyncSession, told: Mapping[int, set[int]], targets: Sequence[Target]
) -> None:
    """Clear the default of the other identities of these users, since a user has one."""
    keys = [each.sender.id for each in targets]
    others = (
        update(Identity)
        .where(
            col(Identity.user_id).in_(told), col(Identity.preferred), col(Identity.id).not_in(keys)
        )
        .values(preferred=False)
        .returning(col(Identity.id), col(Identity.user_id))
    )
    for row in await (await session.connection()).execute(others):
        told[row.user_id].add(row.id)


async def _room(
    ctx: Context,
    session: AsyncSession,
    told: Mapping[int, set[int]],
    targets: Sequence[Target],
    made: Sequence[Mapping[str, Any]],
) -> None:
    """Raise LimitReached if there are too many rows.

    Rows of addresses that the user may no longer send as are deleted first.
    """
    asked = select(*picked(Identity, {"id", "user_id"})).where(col(Identity.user_id).in_(told))
    there: dict[int, set[int]] = {user: set() for user in told}
    for row in await ctx.read(asked):
        there[row.user_id].add(row.id)
    for user, rows in there.items():
        many = sum(row["user_id"] == user for row in made)
        if len(rows) + many <= MOST:
            continue
        known = next(each.there.known for each in targets if each.user.id == user)
        lost = rows - {one.id for one in known.values()}
        gone = delete(Identity).where(col(Identity.id).in_(lost))
        await (await session.connection()).execute(gone)
        told[user].update(lost)
        if (used := len(rows - lost)) + many > MOST:
            raise LimitReached(f"at most {MOST} identities", limit=MOST, used=used, path=["user"])


async def _tell(
    ctx: Context,
    session: AsyncSession,
    told: Mapping[int, Collection[int]],
    log: Mapping[int, Done],
) -> None:
    """Record the changes in the journals and, for other users' identities, in the admin log."""
    kinds = {
        user: [(ChangeKind.IDENTITY_CHANGED, sorted(ids))] for user, ids in told.items() if ids
    }
    if kinds:
        await ctx.record_all(session, kinds)
    mine = told.get(ctx.viewer.user_id, ())
    await admin_log.note(ctx, session, *(done for key, done in log.items() if key not in mine))


def _done(mutation: str, user: Picked, sender: Sender, before: Any, after: Any = None) -> Done:
    said = None if after is None else {"address": sender.address, **after}
    return Done(mutation, "Identity", sender.id, user.domain_id, before, said)


def _logged(sender: Sender) -> dict[str, Any]:
    return {"address": sender.address, "name": sender.name}
