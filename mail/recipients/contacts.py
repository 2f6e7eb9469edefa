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
from mail.addresses.address_syntax import UNSTORABLE, normalized_domain
from mail.mime import ByteSource, ParsedPart
from mail.recipients.batch_resolution import resolve_addresses
from mail.storage.message_content import ReadRows, StoredMessage, examine_messages
from models.addresses.tables import Address, Contact
from models.mailboxes.tables import Mailbox, SpecialUse
from models.runtime.environment import Environment
from models.store.columns import core_table, insert_with_conflict

MAX_CONTACTS = 1000  # per account; the least recently used are deleted
MAX_CONTACTS_PER_MESSAGE = 50  # per message
MAX_NAME = 255  # characters
MAX_ADDRESS = 320  # characters of an address
MESSAGE_COLUMNS = {
    "mailbox_id",
    "draft",
    "received_at",
    "envelope_to",
    "bcc",
}  # columns needed besides those of the search index
IGNORED_USES = (SpecialUse.JUNK, SpecialUse.DRAFTS)

_NO_REPLY_LOCAL_PART = re.compile(
    r"(^|[-_.+=])((no|not|never)[-_.]?repl(y|ies)|donotreply|do-not-reply|mailer-daemon|bounces?)"
    r"($|[-_.+=])"
)


@dataclass(frozen=True, slots=True)
class MessageContacts:
    """The contacts of one message, and when mail arrived for which address."""

    contact_rows: Sequence[Mapping[str, Any]] = ()
    received_at_by_address: Mapping[int, datetime] = field(default_factory=dict)  # by address ID


async def contacts_of_messages(
    environment: Environment,
    message_rows: Sequence[Any],
    stored_messages: Sequence[StoredMessage],
    read_rows: ReadRows,
) -> list[MessageContacts]:
    """Return the contacts of messages, in the same order.

    The number of SQL statements does not depend on the number of messages.
    """
    boxes = {row.mailbox_id for row in message_rows if row.mailbox_id}
    asked = select(col(Mailbox.id), col(Mailbox.special_use)).where(col(Mailbox.id).in_(boxes))
    uses = {row.id: row.special_use for row in (await read_rows(asked, {}) if boxes else ())}
    to = await resolve_addresses(
        environment, {one for row in message_rows for one in row.envelope_to}, read_rows
    )

    def is_ignored(index: int, source: ByteSource | None) -> bool:
        row = message_rows[index]
        if source is None or row.draft or row.mailbox_id not in uses:
            return True
        if uses[row.mailbox_id] in IGNORED_USES:
            return True
        return is_automatic(source, stored_messages[index].structure)

    unheard = await examine_messages(stored_messages, is_ignored)
    found = []
    for row, skipped in zip(message_rows, unheard, strict=True):
        winners = (to.get(one) for one in row.envelope_to)
        came = {winner.id: row.received_at for winner in winners if winner is not None}
        people = [] if skipped else _contact_rows(environment, row, uses[row.mailbox_id])
        found.append(MessageContacts(people, came))
    return found


def _contact_rows(
    environment: Environment, message_row: Any, special_use: SpecialUse | None
) -> list[Mapping[str, Any]]:
    """Return the contact rows of a message: its sender, or the recipients of a sent message."""
    pairs = [[message_row.from_name, message_row.from_address]]
    if special_use is SpecialUse.SENT:
        pairs = [*message_row.to, *message_row.cc, *message_row.bcc]
    known: dict[str, Mapping[str, Any]] = {}
    for name, address in pairs[:MAX_CONTACTS_PER_MESSAGE]:
        key = contact_key(address)
        if key is not None and key not in known:
            called = _printable_name(name)
            known[key] = {
                "id": environment.new_id(),
                "user_id": message_row.user_id,
                "key": key,
                "called": called and called.casefold(),
                "address": address,
                "name": called,
                "last_used_at": message_row.received_at,
            }
    return list(known.values())


def is_automatic(source: ByteSource, structure: ParsedPart) -> bool:
    """Return True if a mailing list or a program sent the message (RFC 2919, RFC 3834)."""
    fields = mime.decoded_fields(source, structure)
    said = {one.key.casefold(): one.value.strip().casefold() for one in fields}
    automatic = said.get("auto-submitted", "no").partition(";")[0].strip() != "no"
    return automatic or "list-id" in said or "x-auto-response-suppress" in said


def contact_key(address: str | None) -> str | None:
    """Return the key of a contact, None for a no-reply address or a text that is no address."""
    local, at, domain = (address or "").strip().rpartition("@")
    if (
        not (local and at and domain)
        or len(address or "") > MAX_ADDRESS
        or UNSTORABLE.search(local + domain)
    ):
        return None
    local = local.casefold()
    return None if _NO_REPLY_LOCAL_PART.search(local) else f"{local}@{normalized_domain(domain)}"


def _printable_name(display_name: str | None) -> str | None:
    """Return the printable part of a name, None if nothing is left."""
    text = "".join(letter for letter in (display_name or "") if letter.isprintable()).strip()
    return text[:MAX_NAME] or None


def record_contacts_and_last_received(
    connection: Connection, message_contacts: Iterable[MessageContacts]
) -> None:
    """Write the contacts and the last use of addresses in the caller's transaction."""
    newest: dict[tuple[int, str], Mapping[str, Any]] = {}
    came: dict[int, datetime] = {}
    for one in message_contacts:
        for row in one.contact_rows:
            place = row["user_id"], row["key"]
            before = newest.get(place)
            if before is None or before["last_used_at"] <= row["last_used_at"]:
                newest[place] = row
        for key, at in one.received_at_by_address.items():
            came[key] = max(at, came.get(key, at))
    if newest:
        _upsert_and_trim_contacts(connection, [newest[place] for place in sorted(newest)])
    if came:
        _update_last_received(connection, came)


def _upsert_and_trim_contacts(
    connection: Connection, contact_rows: Sequence[Mapping[str, Any]]
) -> None:
    """Upsert contacts and delete the oldest ones beyond MAX_CONTACTS."""
    table = core_table(Contact)
    new = insert_with_conflict(connection.dialect.name, Contact)
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
    connection.execute(put, list(contact_rows))
    mine = table.c.user_id == bindparam("user")
    last = (
        select(table.c.last_used_at)
        .where(mine)
        .order_by(table.c.last_used_at.desc(), table.c.id.desc())
        .offset(MAX_CONTACTS - 1)
        .limit(1)
        .scalar_subquery()
    )
    old = delete(table).where(mine, table.c.last_used_at < last)
    connection.execute(
        old, [{"user": user} for user in sorted({row["user_id"] for row in contact_rows})]
    )


def _update_last_received(
    connection: Connection, received_at_by_address: Mapping[int, datetime]
) -> None:
    """Update when addresses last received mail. Rows locked by others are skipped."""
    table = core_table(Address)
    free = select(table.c.id).where(table.c.id.in_(received_at_by_address)).order_by(table.c.id)
    keys = connection.execute(free.with_for_update(skip_locked=True)).scalars().all()
    earlier = or_(table.c.last_received_at.is_(None), table.c.last_received_at < bindparam("at"))
    this = update(table).where(table.c.id == bindparam("address"), earlier)
    given = [{"address": key, "at": received_at_by_address[key]} for key in keys]
    if given:
        connection.execute(this.values(last_received_at=bindparam("at")), given)
