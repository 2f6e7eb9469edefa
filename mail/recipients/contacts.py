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
from mail.recipients.batch_resolution import load_receiving_address_rows
from mail.storage.message_content import ReadRows, StoredMessage, run_on_message_sources_in_thread
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


async def load_contacts_of_messages(
    environment: Environment,
    message_rows: Sequence[Any],
    stored_messages: Sequence[StoredMessage],
    read_rows: ReadRows,
) -> list[MessageContacts]:
    """Return the contacts of messages, in the same order.

    The number of SQL statements does not depend on the number of messages.
    """
    mailbox_ids = {row.mailbox_id for row in message_rows if row.mailbox_id}
    statement = select(col(Mailbox.id), col(Mailbox.special_use)).where(
        col(Mailbox.id).in_(mailbox_ids)
    )
    uses = {
        row.id: row.special_use for row in (await read_rows(statement, {}) if mailbox_ids else ())
    }
    receiving_rows = await load_receiving_address_rows(
        environment, {address for row in message_rows for address in row.envelope_to}, read_rows
    )

    def is_ignored(index: int, source: ByteSource | None) -> bool:
        row = message_rows[index]
        if source is None or row.draft or row.mailbox_id not in uses:
            return True
        if uses[row.mailbox_id] in IGNORED_USES:
            return True
        return is_automatic(source, stored_messages[index].structure)

    unheard = await run_on_message_sources_in_thread(stored_messages, is_ignored)
    contacts = []
    for row, skipped in zip(message_rows, unheard, strict=True):
        winners = (receiving_rows.get(address) for address in row.envelope_to)
        received_at_by_address = {
            winner.id: row.received_at for winner in winners if winner is not None
        }
        people = [] if skipped else _contact_rows(environment, row, uses[row.mailbox_id])
        contacts.append(MessageContacts(people, received_at_by_address))
    return contacts


def _contact_rows(
    environment: Environment, message_row: Any, special_use: SpecialUse | None
) -> list[Mapping[str, Any]]:
    """Return the contact rows of a message: its sender, or the recipients of a sent message."""
    pairs = [[message_row.from_name, message_row.from_address]]
    if special_use is SpecialUse.SENT:
        pairs = [*message_row.to, *message_row.cc, *message_row.bcc]
    rows_by_key: dict[str, Mapping[str, Any]] = {}
    for given_name, address in pairs[:MAX_CONTACTS_PER_MESSAGE]:
        key = contact_key_or_none(address)
        if key is not None and key not in rows_by_key:
            name = _printable_name(given_name)
            rows_by_key[key] = {
                "id": environment.new_id(),
                "user_id": message_row.user_id,
                "key": key,
                "folded_name": name and name.casefold(),
                "address": address,
                "name": name,
                "last_used_at": message_row.received_at,
            }
    return list(rows_by_key.values())


def is_automatic(source: ByteSource, structure: ParsedPart) -> bool:
    """Return True if a mailing list or a program sent the message (RFC 2919, RFC 3834)."""
    fields = mime.decoded_fields(source, structure)
    values_by_name = {field.name.casefold(): field.value.strip().casefold() for field in fields}
    is_automatic_reply = mime.leading_keyword(values_by_name.get("auto-submitted", "no")) != "no"
    names = ("list-id", "x-auto-response-suppress")
    return is_automatic_reply or any(name in values_by_name for name in names)


def contact_key_or_none(address: str | None) -> str | None:
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
    text = "".join(
        character for character in (display_name or "") if character.isprintable()
    ).strip()
    return text[:MAX_NAME] or None


def record_contacts_and_last_received(
    connection: Connection, message_contacts: Iterable[MessageContacts]
) -> None:
    """Write the contacts and the last use of addresses in the caller's transaction."""
    newest: dict[tuple[int, str], Mapping[str, Any]] = {}
    received_at_by_address: dict[int, datetime] = {}
    for contact in message_contacts:
        for row in contact.contact_rows:
            user_and_key = row["user_id"], row["key"]
            before = newest.get(user_and_key)
            if before is None or before["last_used_at"] <= row["last_used_at"]:
                newest[user_and_key] = row
        for key, at in contact.received_at_by_address.items():
            received_at_by_address[key] = max(at, received_at_by_address.get(key, at))
    if newest:
        _upsert_and_trim_contacts(
            connection, [newest[user_and_key] for user_and_key in sorted(newest)]
        )
    if received_at_by_address:
        _update_last_received(connection, received_at_by_address)


def _upsert_and_trim_contacts(
    connection: Connection, contact_rows: Sequence[Mapping[str, Any]]
) -> None:
    """Upsert contacts and delete the oldest ones beyond MAX_CONTACTS."""
    table = core_table(Contact)
    new = insert_with_conflict(connection.dialect.name, Contact)
    has_name = new.excluded.name.is_not(None)
    values = {
        "address": new.excluded.address,
        "last_used_at": new.excluded.last_used_at,
        "name": case((has_name, new.excluded.name), else_=table.c.name),
        "folded_name": case((has_name, new.excluded.folded_name), else_=table.c.folded_name),
    }
    statement = new.on_conflict_do_update(
        index_elements=["user_id", "key"],
        set_=values,
        where=table.c.last_used_at <= new.excluded.last_used_at,
    )
    connection.execute(statement, list(contact_rows))
    is_of_user = table.c.user_id == bindparam("user")
    last = (
        select(table.c.last_used_at)
        .where(is_of_user)
        .order_by(table.c.last_used_at.desc(), table.c.id.desc())
        .offset(MAX_CONTACTS - 1)
        .limit(1)
        .scalar_subquery()
    )
    old = delete(table).where(is_of_user, table.c.last_used_at < last)
    connection.execute(
        old, [{"user": user} for user in sorted({row["user_id"] for row in contact_rows})]
    )


def _update_last_received(
    connection: Connection, received_at_by_address: Mapping[int, datetime]
) -> None:
    """Update when addresses last received mail. Rows locked by others are skipped."""
    table = core_table(Address)
    unlocked = select(table.c.id).where(table.c.id.in_(received_at_by_address)).order_by(table.c.id)
    keys = connection.execute(unlocked.with_for_update(skip_locked=True)).scalars().all()
    earlier = or_(table.c.last_received_at.is_(None), table.c.last_received_at < bindparam("at"))
    statement = update(table).where(table.c.id == bindparam("address"), earlier)
    parameter_sets = [{"address": key, "at": received_at_by_address[key]} for key in keys]
    if parameter_sets:
        connection.execute(statement.values(last_received_at=bindparam("at")), parameter_sets)
