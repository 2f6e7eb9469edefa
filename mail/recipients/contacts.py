"""Record contacts and the last use of addresses after messages arrive.

Contacts are the senders of stored messages and the recipients of sent ones. Junk, drafts, mailing
lists, automatic mail and no-reply addresses add no contacts.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, bindparam, case, delete, or_, select, update
from sqlmodel import col

from mail import mime
from mail.addresses.address_syntax import ODD, normal_domain
from mail.mime import Part, Source
from mail.recipients.batch_resolution import resolve_all
from mail.storage.message_content import Read, Stored, examine_each
from models.addresses.tables import Address, Correspondent
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import World
from models.store.columns import insert_or, table_of

MOST = 1000  # per account; the least recently used are deleted
EACH = 50  # per message
NAME = 255  # characters
LONGEST = 320  # characters of an address
SHOWN = {
    "mailbox_id",
    "draft",
    "received_at",
    "envelope_to",
    "bcc",
}  # columns needed besides those of the search index
UNHEARD = (SpecialUse.JUNK, SpecialUse.DRAFTS)

_DEAF = re.compile(
    r"(^|[-_.+=])((no|not|never)[-_.]?repl(y|ies)|donotreply|do-not-reply|mailer-daemon|bounces?)"
    r"($|[-_.+=])"
)


@dataclass(frozen=True, slots=True)
class Heard:
    """The contacts of one message, and when mail arrived for which address."""

    people: Sequence[Mapping[str, Any]] = ()
    came: Mapping[int, datetime] = field(default_factory=dict)  # by address ID


async def heard(
    world: World, rows: Sequence[Any], sources: Sequence[Stored], read: Read
) -> list[Heard]:
    """Return the contacts of messages, in the same order.

    The number of SQL statements does not depend on the number of messages.
    """
    boxes = {row.mailbox_id for row in rows if row.mailbox_id}
    asked = select(col(Mailbox.id), col(Mailbox.special_use)).where(col(Mailbox.id).in_(boxes))
    uses = {row.id: row.special_use for row in (await read(asked, {}) if boxes else ())}
    to = await resolve_all(world, {one for row in rows for one in row.envelope_to}, read)

    def is_unheard(nth: int, source: Source | None) -> bool:
        row = rows[nth]
        if source is None or row.draft or row.mailbox_id not in uses:
            return True
        if uses[row.mailbox_id] in UNHEARD:
            return True
        return by_machine(source, sources[nth].structure)

    unheard = await examine_each(sources, is_unheard)
    found = []
    for row, skipped in zip(rows, unheard, strict=True):
        winners = (to.get(one) for one in row.envelope_to)
        came = {winner.id: row.received_at for winner in winners if winner is not None}
        people = [] if skipped else _people(world, row, uses[row.mailbox_id])
        found.append(Heard(people, came))
    return found


def _people(world: World, row: Any, use: SpecialUse | None) -> list[Mapping[str, Any]]:
    """Return the contact rows of a message: its sender, or the recipients of a sent message."""
    pairs = [[row.from_name, row.from_address]]
    if use is SpecialUse.SENT:
        pairs = [*row.to, *row.cc, *row.bcc]
    known: dict[str, Mapping[str, Any]] = {}
    for name, address in pairs[:EACH]:
        key = key_of(address)
        if key is not None and key not in known:
            called = _printable(name)
            known[key] = {
                "id": world.key(),
                "user_id": row.user_id,
                "key": key,
                "called": called and called.casefold(),
                "address": address,
                "name": called,
                "last_used_at": row.received_at,
            }
    return list(known.values())


def by_machine(source: Source, structure: Part) -> bool:
    """Return True if a mailing list or a program sent the message (RFC 2919, RFC 3834)."""
    fields = mime.headers(source, structure)
    said = {one.key.casefold(): one.value.strip().casefold() for one in fields}
    automatic = said.get("auto-submitted", "no").partition(";")[0].strip() != "no"
    return automatic or "list-id" in said or "x-auto-response-suppress" in said


def key_of(address: str | None) -> str | None:
    """Return the key of a contact, None for a no-reply address or a text that is no address."""
    local, at, domain = (address or "").strip().rpartition("@")
    if not (local and at and domain) or len(address or "") > LONGEST or ODD.search(local + domain):
        return None
    local = local.casefold()
    return None if _DEAF.search(local) else f"{local}@{normal_domain(domain)}"


def _printable(name: str | None) -> str | None:
    """Return the printable part of a name, None if nothing is left."""
    text = "".join(letter for letter in (name or "") if letter.isprintable()).strip()
    return text[:NAME] or None


def note(connection: Connection, told: Iterable[Heard]) -> None:
    """Write the contacts and the last use of addresses in the caller's transaction."""
    newest: dict[tuple[int, str], Mapping[str, Any]] = {}
    came: dict[int, datetime] = {}
    for one in told:
        for row in one.people:
            place = row["user_id"], row["key"]
            before = newest.get(place)
            if before is None or before["last_used_at"] <= row["last_used_at"]:
                newest[place] = row
        for key, at in one.came.items():
            came[key] = max(at, came.get(key, at))
    if newest:
        _register(connection, [newest[place] for place in sorted(newest)])
    if came:
        _received(connection, came)


def _register(connection: Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    """Upsert contacts and delete the oldest ones beyond MAX_CONTACTS."""
    table = table_of(Correspondent)
    new = insert_or(connection.dialect.name, Correspondent)
    named = new.excluded.name.is_not(None)
    values = {
        "address": new.excluded.address,
        "last_used_at": new.excluded.last_used_at,
        "name": case((named, new.excluded.name), else_=table.c.name),
        "called": case((named, new.excluded.called), else_=table.c.called),
    }
    put = new.on_conflict_do_update(
        index_elements=["user_id", "key"],
        set_=values,
        where=table.c.last_used_at <= new.excluded.last_used_at,
    )
    connection.execute(put, list(rows))
    mine = table.c.user_id == bindparam("user")
    last = (
        select(table.c.last_used_at)
        .where(mine)
        .order_by(table.c.last_used_at.desc(), table.c.id.desc())
        .offset(MOST - 1)
        .limit(1)
        .scalar_subquery()
    )
    old = delete(table).where(mine, table.c.last_used_at < last)
    connection.execute(old, [{"user": user} for user in sorted({row["user_id"] for row in rows})])


def _received(connection: Connection, came: Mapping[int, datetime]) -> None:
    """Update when addresses last received mail. Rows locked by others are skipped."""
    table = table_of(Address)
    free = select(table.c.id).where(table.c.id.in_(came)).order_by(table.c.id)
    keys = connection.execute(free.with_for_update(skip_locked=True)).scalars().all()
    earlier = or_(table.c.last_received_at.is_(None), table.c.last_received_at < bindparam("at"))
    this = update(table).where(table.c.id == bindparam("address"), earlier)
    given = [{"address": key, "at": came[key]} for key in keys]
    if given:
        connection.execute(this.values(last_received_at=bindparam("at")), given)
