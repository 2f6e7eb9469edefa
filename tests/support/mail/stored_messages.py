"""Read stored messages, their mailboxes and flags."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.storage.message_content import read_all
from mail.storage.message_open import open_messages_and_log_damage
from models.mailboxes.tables import Mailbox, SpecialUse
from models.messages.tables import Message
from models.runtime.environment import Environment
from resolvers.messages import content
from tests.conftest import GraphQLClient, client_context
from tests.support.stores.counter_check import select_rows


async def message_special_use(client: GraphQLClient, subject: str) -> SpecialUse | None:
    """The special use of the mailbox of the message with this subject; None if there is none."""
    query = (
        select(col(Mailbox.special_use))
        .join(Message, col(Message.mailbox_id) == col(Mailbox.id))
        .where(col(Message.user_id) == client.user.id, col(Message.subject) == subject)
    )
    mailboxes = await client.environment.database.read(query)
    return SpecialUse(mailboxes[0].special_use) if mailboxes else None


async def newest_inbox_message(ada: GraphQLClient) -> bytes:
    """The newest message of the INBOX, byte for byte."""
    query = select(col(Message.id)).where(col(Message.mailbox_id) == (await ada.load_mailbox()).id)
    messages = await ada.environment.database.read(query.order_by(col(Message.id)))
    stored = await content.load_stored_message(client_context(ada), messages[-1].id)
    assert stored is not None
    return stored.layout.slice(0, stored.size)


async def stored_messages_by_path(client: GraphQLClient) -> dict[str, tuple[Any, bytes]]:
    """The messages of a user, row and bytes, by the path of the mailbox."""
    query = (
        select(*Message.__table__.c, col(Mailbox.path))  # type: ignore[attr-defined]
        .join(Mailbox, col(Mailbox.id) == col(Message.mailbox_id))
        .where(col(Message.user_id) == client.user.id)
    )
    message_rows = await client.environment.database.read(query)
    contents = await open_messages_and_log_damage(client.environment, message_rows)
    return {
        row.path: (row, await read_all(content.stream_raw()))
        for row, content in zip(message_rows, contents, strict=True)
    }


async def subjects_by_mailbox(
    environment: Environment, client: GraphQLClient
) -> dict[str, list[str]]:
    """The subjects of the messages of a user by the path of the mailbox."""
    sql = (
        "SELECT b.path, m.subject, m.user_id FROM messages m "
        "JOIN mailboxes b ON b.id = m.mailbox_id ORDER BY m.id"
    )
    subjects: dict[str, list[str]] = {}
    for path, subject, owner in await select_rows(environment, sql):
        if owner == client.user.id:
            subjects.setdefault(path, []).append(subject)
    return subjects


async def message_flags(client: GraphQLClient, path: str = "INBOX") -> list[list[str]]:
    """The flags of each message of a mailbox, sorted."""
    data = await client(
        "query ($path: String!) { mailbox(by: {path: $path}) { messages(first: 9) "
        "{ nodes { imap { flags } } } } }",
        path=path,
    )
    return [sorted(node["imap"]["flags"]) for node in data["mailbox"]["messages"]["nodes"]]
