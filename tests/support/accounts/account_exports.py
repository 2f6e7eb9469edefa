"""Accounts as files, for tests: furnished, exported, brought in, and all there is of one."""

import base64
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.storage import message_flags, message_insert, received_messages
from mail.storage.message_content import read_all
from mail.storage.message_insert import MessagePlacement
from models.mailboxes.tables import Mailbox, MailboxAnnotation
from models.messages.tables import Message
from models.store.columns import select_columns
from resolvers.admin import key_values, tasks
from resolvers.admin.key_values import KeyValueNamespace, NewKeyValue
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import metadata
from resolvers.mailboxes.loaders import MailboxSelector, NewMailboxes
from resolvers.messages import content as message_content
from resolvers.messages.bulk import flags, row_changes
from resolvers.transfer.export_writer import SETTING_COLUMNS
from tests.conftest import Client, Clock, context, raw_message
from tests.support.accounts.openpgp_keys import key_of
from tests.support.accounts.user_operations import row_of, run
from tests.support.stores.counter_check import rows

EXPORT = "export { id state format size expiresAt url user { username } task { id done total } }"
TASK = "task { id kind state }"
FULL = ("EML_ZIP", "MAILDIR_TAR", "JSON")
HOSTILE = [
    b"Subject: a\r\n\r\nFrom here\r\n>From there\r\n>>From x Tue Jan  6 10:00:00 2026\r\n",
    b"Subject: b\n\nFrom a@b.example Tue Jan  6 10:00:00 2026\n\nbare\nline ends\n",
    b"Subject: c\r\n\r\nno end, and a NUL\0, and \xff\xfe",
    b"Subject: d\r\n\r\nbare\rCR\r\n\r\n\r\n",
    b"\n\n\n",
    b"no header at all",
    raw_message("Grüße"),
]


async def place(client: Client, raw: bytes, path: str = "INBOX", **more: Any) -> int:
    """Store these very bytes; the key."""
    box, world = await client.box(path), client.world
    letter = await received_messages.read_message(raw)
    (tenant,) = {row[0] for row in await rows(world, "SELECT tenant_id FROM users WHERE id = :u",
                                             u=client.user.id)}  # fmt: skip
    kept = await received_messages.store_blobs(world, tenant, letter)
    to = MessagePlacement(client.user.id, box.id, more.pop("at", world.now()), **more)
    return (
        await world.run_transaction(
            lambda turn: message_insert.insert_message(turn, letter, kept, to), client.user.id
        )
    ).message_id


async def flag(client: Client, key: int, *names: str, **values: Any) -> None:
    ctx = context(client)
    async with ctx.write_session(client.user.id) as session:
        found = await row_changes.load_rows_in_transaction(
            session, [key], extra_columns=frozenset({"meta_data"})
        )
        await flags.change_flags(
            ctx,
            session,
            found,
            row_changes.FlagChanges.from_flag_names({}, added=names, column_values=values),
        )


async def furnish(client: Client, clock: Clock) -> None:
    """An account with all there can be."""
    ctx = context(client)
    deep = "/".join(["Tief"] * 128)
    for path in ("Archive/2019/Über .. uns", "a.b/c\\d:e", "日本語", deep, "Empty"):
        await mailbox_loaders.create_mailboxes(ctx, NewMailboxes([path]))
    await mailbox_loaders.create_mailboxes(
        ctx,
        NewMailboxes(["Kept"], is_hidden=True, retention=timedelta(days=9), is_subscribed=False),
    )
    await run(client, "userUpdate", set={"pubKey": key_of("Ada"), "encryptMessages": True})
    await mailbox_loaders.create_mailboxes(ctx, NewMailboxes(["Sealed"], encrypt_messages=True))
    await metadata.set_annotation(ctx, MailboxSelector(path="日本語"), ("/private/comment", "読む"))
    for nth, raw in enumerate(HOSTILE):
        clock.tick(seconds=61, microseconds=7)
        key = await place(client, raw, seen=bool(nth % 2), envelope_from="carol@example.com")
        if nth == 1:
            data = {"meta_data": {"x": ["ä", 1]}, "expires": clock() + timedelta(days=90)}
            await flag(client, key, "\\Answered", "\\Deleted", "wörk", "$Forwarded", **data)
    for path in (deep, "a.b/c\\d:e", "日本語"):
        await place(client, raw_message(path[:9]), path, at=clock() - timedelta(days=9000))
    await place(client, raw_message("twice"), "日本語", flagged=True)
    await place(client, raw_message("twice"), "日本語", draft=True)
    await run(client, "userUpdate", set={"name": "Ada", "language": "de", "metaData": {"a": 1}})
    away = {"enabled": True, "text": "Weg.", "subject": "Weg", "interval": "P3D"}
    await run(client, "autoreplySet", "users { username }", set=away)
    for name, active in (("lists", False), ("main", True)):
        script = {"name": name, "content": f"# {name}, Grüße\nkeep;\n", "activate": active}
        await run(client, "sieveScriptPut", "scripts { name }", **script)
    value = NewKeyValue("dark", timedelta(days=5))
    await key_values.set_value(
        context(client), KeyValueNamespace(client.user.id), "ui/theme", value
    )


async def told(client: Client) -> Any:
    """All there is of an account, but keys and places."""
    ctx = context(client)
    boxes = await ctx.read(
        select(*select_columns(Mailbox)).where(col(Mailbox.user_id) == client.user.id)
    )
    notes = await ctx.read(select(*select_columns(MailboxAnnotation)))
    named = {box.id: box.path for box in boxes}
    mine = col(Message.user_id) == client.user.id, col(Message.mailbox_id).is_not(None)
    found = await ctx.read(select(*select_columns(Message)).where(*mine))
    mail = []
    for row in found:
        stored = await message_content.load_stored_message(ctx, row.id)
        assert stored is not None
        raw = await read_all(stored.stream_raw())
        facts = (row.received_at, row.expires, row.meta_data, row.envelope_from, row.envelope_to)
        mail.append((named[row.mailbox_id], raw, sorted(message_flags.imap_flags(row)), facts))
    user = await row_of(client.world, client)
    values = await rows(client.world, "SELECT store, key, value FROM key_values "
                        "WHERE stream_id = :u", u=client.user.id)  # fmt: skip
    return {
        "boxes": sorted((b.path, b.special_use, b.hidden, b.subscribed, b.retention, b.total,
                         b.encrypt_messages)
                        for b in boxes),
        "notes": sorted((named[n.mailbox_id], n.key, n.value) for n in notes
                        if n.mailbox_id in named),
        "mail": sorted(mail, key=repr),
        "settings": {name: getattr(user, name) for name in SETTING_COLUMNS},
        "values": sorted(values),
        "scripts": await rows(client.world, "SELECT name, content, active FROM sieve_scripts "
                              "WHERE user_id = :u ORDER BY name", u=client.user.id),
        "answer": await rows(client.world, "SELECT enabled, text, subject FROM autoreplies "
                             "WHERE id = :u", u=client.user.id),
    }  # fmt: skip


async def exported(client: Client, **given: Any) -> Any:
    """A whole export, with its bytes."""
    done = await run(client, "accountExport", EXPORT, **given)
    assert done["errors"] == []
    assert done["export"]["url"] is None
    while await tasks.run_next_task(client.world):
        pass
    key = done["export"]["id"]
    found = await node(client, key)
    got = await client.http.get(found["url"])
    assert (got.status_code, len(got.content)) == (200, found["size"])
    return {**found, "content": got.content}


async def node(client: Client, key: str) -> Any:
    document = f"""query ($id: ID!) {{ node(id: $id) {{ ... on AccountExport {{
      {EXPORT[len("export {") :]} }} }}"""
    return (await client(document, id=key))["node"]


async def listed(client: Client) -> list[str]:
    answer = await client("{ viewer { user { exports { id } } } }")
    return [one["id"] for one in answer["viewer"]["user"]["exports"]]


async def imported(client: Client, content: bytes, **given: Any) -> Any:
    """What the task says at its end."""
    archive = {"text": base64.b64encode(content).decode()}
    done = await run(client, "accountImport", TASK, archive=archive, encoding="BASE64", **given)
    assert done["errors"] == []
    while await tasks.run_next_task(client.world):
        pass
    return await ended(client, done["task"]["id"])


async def ended(client: Client, key: str) -> Any:
    document = "query ($id: ID!) { task(id: $id) { kind state done total result error } }"
    return (await client(document, id=key))["task"]


def codes(done: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in done["errors"]]
