"""Export and import of accounts: test data, the operations, and a snapshot to compare."""

import base64
from datetime import timedelta
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.mailboxes.paths import MAX_LEVELS
from mail.storage import message_flags, message_insert, received_messages
from mail.storage.message_content import read_all
from mail.storage.message_insert import MessagePlacement
from mail.storage.quota import InsertKind
from models.mailboxes.tables import Mailbox, MailboxAnnotation
from models.messages.tables import Message
from models.store.columns import select_columns
from resolvers.admin import key_values, tasks
from resolvers.admin.key_values import KeyValueNamespace, NewKeyValue
from resolvers.mailboxes import annotations
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages import content as message_content
from resolvers.messages.bulk import flag_changes, flags, row_changes
from resolvers.transfer.export_settings import SETTING_COLUMNS
from tests.conftest import GraphQLClient, ManualClock, client_context, raw_message
from tests.support.accounts.openpgp_keys import make_public_key
from tests.support.accounts.user_operations import execute_mutation, load_user_row
from tests.support.stores.counter_check import select_rows

EXPORT_FIELDS = (
    "userExport { id state format size expiresAt url user { username } "
    "task { id doneCount totalCount } }"
)
TASK_FIELDS = "task { id kind state }"
FEW_LEVELS = 4  # of the deepest mailbox, where its depth does not matter
FULL_EXPORT_FORMATS = ("EML_ZIP", "MAILDIR_TAR", "JSON")
HOSTILE_MESSAGES = [
    b"Subject: a\r\n\r\nFrom here\r\n>From there\r\n>>From x Tue Jan  6 10:00:00 2026\r\n",
    b"Subject: b\n\nFrom a@b.example Tue Jan  6 10:00:00 2026\n\nbare\nline ends\n",
    b"Subject: c\r\n\r\nno end, and a NUL\0, and \xff\xfe",
    b"Subject: d\r\n\r\nbare\rCR\r\n\r\n\r\n",
    b"\n\n\n",
    b"no header at all",
    raw_message("Grüße"),
]


async def store_raw_message(
    client: GraphQLClient, raw: bytes, path: str = "INBOX", **placement_values: Any
) -> int:
    """Store exactly these bytes as a message, and return its id."""
    mailbox, environment = await client.load_mailbox(path), client.environment
    parsed = await received_messages.parse_storable_message(raw)
    tenant_query = "SELECT tenant_id FROM users WHERE id = :u"
    ((tenant,),) = await select_rows(environment, tenant_query, u=client.user.id)
    stored_blobs = await received_messages.store_blobs_once_per_tenant(environment, tenant, parsed)
    placement = MessagePlacement(
        client.user.id,
        mailbox.id,
        placement_values.pop("at", environment.now()),
        **placement_values,
    )
    return (
        await environment.run_transaction(
            lambda transaction: message_insert.insert_message_and_take_quota(
                transaction, parsed, stored_blobs, placement, kind=InsertKind.ADDED_BY_USER
            ),
            client.user.id,
        )
    ).message_id


async def change_flags(client: GraphQLClient, message_id: int, *names: str, **values: Any) -> None:
    ctx = client_context(client)
    async with ctx.write_session(client.user.id) as session:
        message_rows = await row_changes.load_rows_in_transaction(
            session, [message_id], extra_columns=frozenset({"public_metadata"})
        )
        await flags.change_flags(
            ctx,
            session,
            message_rows,
            flag_changes.FlagChanges.from_flag_names({}, added=names, column_values=values),
        )


async def fill_account(
    client: GraphQLClient, clock: ManualClock, *, levels: int = MAX_LEVELS
) -> None:
    """Add data of every kind that an export contains to an account.

    The deepest mailbox has this number of levels, which determines the time of an import.
    """
    ctx = client_context(client)
    deep_path = "/".join(["Tief"] * levels)
    for path in ("Archive/2019/Über .. uns", "a.b/c\\d:e", "日本語", deep_path, "Empty"):
        await mailbox_create.create_mailboxes(ctx, NewMailboxes([path]))
    await mailbox_create.create_mailboxes(
        ctx,
        NewMailboxes(["Kept"], is_hidden=True, retention=timedelta(days=9), is_subscribed=False),
    )
    await execute_mutation(
        client,
        "userUpdate",
        set={"openpgpPublicKey": make_public_key("Ada"), "encryptMessages": True},
    )
    await mailbox_create.create_mailboxes(ctx, NewMailboxes(["Sealed"], encrypt_messages=True))
    await annotations.set_annotation_in_each_account(
        ctx, MailboxSelector(path="日本語"), ("/private/comment", "読む")
    )
    for number, raw in enumerate(HOSTILE_MESSAGES):
        clock.tick(seconds=61, microseconds=7)
        key = await store_raw_message(
            client, raw, seen=bool(number % 2), envelope_from="carol@example.com"
        )
        if number == 1:
            data = {"public_metadata": {"x": ["ä", 1]}, "expires_at": clock() + timedelta(days=90)}
            await change_flags(client, key, "\\Answered", "\\Deleted", "wörk", "$Forwarded", **data)
    for path in (deep_path, "a.b/c\\d:e", "日本語"):
        await store_raw_message(
            client, raw_message(path[:9]), path, at=clock() - timedelta(days=9000)
        )
    await store_raw_message(client, raw_message("twice"), "日本語", flagged=True)
    await store_raw_message(client, raw_message("twice"), "日本語", draft=True)
    await execute_mutation(
        client, "userUpdate", set={"name": "Ada", "language": "de", "metadata": {"a": 1}}
    )
    switches = {"uploadSentMessages": True, "encryptForwarded": True, "requireInboundTls": True}
    spam = {"junkScore": 6.5, "rejectScore": 15.0, "level": 40}
    notices = {"spam": spam, "quarantineNotification": "WEEKLY"}
    forwarding = {"forwardTo": ["ada@example.net"], "subaddressAction": "SUBFOLDER"}
    await execute_mutation(client, "userUpdate", set={**switches, **notices, **forwarding})
    for name, query in (("Offers", "subject:offer larger:1000"), ("New", "is:unseen -in:junk")):
        search = {"name": name, "query": query}
        await execute_mutation(client, "savedSearchCreate", "savedSearch { name }", **search)
    subscription = {"mailboxes": [{"path": "News/Gone"}]}
    await execute_mutation(client, "mailboxSubscribe", "mailboxes { path }", **subscription)
    autoreply = {"enabled": True, "text": "Weg.", "subject": "Weg", "interval": "P3D"}
    await execute_mutation(client, "autoreplySet", "users { username }", set=autoreply)
    for name, active in (("lists", False), ("main", True)):
        script = {"name": name, "content": f"# {name}, Grüße\nkeep;\n", "activate": active}
        await execute_mutation(client, "sieveScriptSet", "sieveScripts { name }", **script)
    value = NewKeyValue("dark", timedelta(days=5))
    await key_values.set_key_value(
        client_context(client), KeyValueNamespace(client.user.id), "ui/theme", value
    )


async def load_account_state(client: GraphQLClient) -> Any:
    """All data of an account that an export contains, without ids, UIDs and MODSEQs."""
    ctx = client_context(client)
    mailboxes = await ctx.read(
        select(*select_columns(Mailbox)).where(col(Mailbox.user_id) == client.user.id)
    )
    annotations = await ctx.read(select(*select_columns(MailboxAnnotation)))
    path_by_id = {mailbox.id: mailbox.path for mailbox in mailboxes}
    own_message_conditions = (
        col(Message.user_id) == client.user.id,
        col(Message.mailbox_id).is_not(None),
    )
    message_rows = await ctx.read(select(*select_columns(Message)).where(*own_message_conditions))
    messages = []
    for row in message_rows:
        stored = await message_content.load_stored_message(ctx, row.id)
        assert stored is not None
        raw = await read_all(stored.stream_raw())
        columns = (
            row.received_at,
            row.expires_at,
            row.public_metadata,
            row.envelope_from,
            row.envelope_to,
        )
        messages.append(
            (path_by_id[row.mailbox_id], raw, sorted(message_flags.imap_flags(row)), columns)
        )
    user = await load_user_row(client.environment, client)
    environment, user_id = client.environment, client.user.id
    value_query = "SELECT store, key, value FROM key_value_entries WHERE stream_id = :u"
    script_query = (
        "SELECT name, content, active FROM sieve_scripts WHERE user_id = :u ORDER BY name"
    )
    search_query = "SELECT name, filter FROM saved_searches WHERE user_id = :u ORDER BY name"
    subscription_query = "SELECT path FROM mailbox_subscriptions WHERE user_id = :u"
    autoreply_query = "SELECT enabled, text, subject FROM autoreplies WHERE id = :u"
    return {
        "boxes": sorted((m.path, m.special_use, m.hidden, m.subscribed, m.retention,
                         m.message_count, m.encrypt_messages)
                        for m in mailboxes),
        "notes": sorted((path_by_id[a.mailbox_id], a.key, a.value) for a in annotations
                        if a.mailbox_id in path_by_id),
        "mail": sorted(messages, key=repr),
        "settings": {name: getattr(user, name) for name in SETTING_COLUMNS},
        "values": sorted(await select_rows(environment, value_query, u=user_id)),
        "scripts": await select_rows(environment, script_query, u=user_id),
        "searches": await select_rows(environment, search_query, u=user_id),
        "subscriptions": await select_rows(environment, subscription_query, u=user_id),
        "answer": await select_rows(environment, autoreply_query, u=user_id),
    }  # fmt: skip


async def export_account(client: GraphQLClient, **options: Any) -> Any:
    """Export an account, and return the export node with the downloaded `content`."""
    payload = await execute_mutation(client, "userExport", EXPORT_FIELDS, **options)
    assert payload["errors"] == []
    assert payload["userExport"]["url"] is None
    while await tasks.run_next_task(client.environment):
        pass
    export_id = payload["userExport"]["id"]
    export = await load_export(client, export_id)
    download = await client.http.get(export["url"])
    assert (download.status_code, len(download.content)) == (200, export["size"])
    return {**export, "content": download.content}


async def load_export(client: GraphQLClient, export_id: str) -> Any:
    document = f"""query ($id: ID!) {{ node(id: $id) {{ ... on UserExport {{
      {EXPORT_FIELDS[len("userExport {") :]} }} }}"""
    return (await client(document, id=export_id))["node"]


async def list_export_ids(client: GraphQLClient) -> list[str]:
    data = await client("{ viewer { user { exports { nodes { id } } } } }")
    return [export["id"] for export in data["viewer"]["user"]["exports"]["nodes"]]


async def import_account(client: GraphQLClient, content: bytes, **options: Any) -> Any:
    """Import an archive, and return the finished task."""
    archive = {"text": base64.b64encode(content).decode()}
    payload = await execute_mutation(
        client, "userImport", TASK_FIELDS, archive=archive, encoding="BASE64", **options
    )
    assert payload["errors"] == []
    while await tasks.run_next_task(client.environment):
        pass
    return await load_task(client, payload["task"]["id"])


async def load_task(client: GraphQLClient, task_id: str) -> Any:
    document = (
        "query ($id: ID!) { task(by: {id: $id}) { kind state doneCount totalCount result error } }"
    )
    return (await client(document, id=task_id))["task"]


def error_codes_and_paths(payload: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in payload["errors"]]
