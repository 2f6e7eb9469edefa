"""Saving drafts: a saved draft keeps its ID, attachments and thread."""

import asyncio
import base64
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.http import download_urls
from graph.types import global_ids
from mail.search import index_worker
from mail.storage import draft_replacement, received_messages
from mail.storage.blobs.garbage_collector import collect_garbage
from mail.storage.blobs.object_stores import FolderStore
from mail.storage.draft_replacement import EarlierDraft
from mail.storage.message_insert import InsertItem, MessagePlacement
from models.errors import Conflict, StaleObject
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to, raw_message
from tests.support.case_loop import each_case
from tests.support.mail.multipart_message import pseudo_random_bytes
from tests.support.operations.message_sources import (
    FILE_A,
    FILE_B,
    FILE_C,
    create_draft,
    import_message,
    load_attached_files,
    new_attachment,
    parse_stored_message,
    save_draft,
    upload_bytes,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)
from tests.support.time_limits import HANG_SECONDS

SEARCH_QUERY = """
query ($query: String!) { viewer { user { messages(filter: {query: $query}) { nodes { id } } } } }
"""
MESSAGE_UPDATE = """
mutation ($id: ID!) { messageUpdate(input: {select: {ids: [$id]},
  set: {flagged: true, addFlags: ["work"], metadata: {a: 1}}}) { errors { code } } }
"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def save_draft_again(client: GraphQLClient, draft: Any, **fields: Any) -> Any:
    fields = {"text": "Dear Carol, more", **fields}
    return await save_draft(client, draft={"id": draft["id"]}, **fields)


async def search_message_ids(client: GraphQLClient, query: str) -> list[str]:
    user = (await client(SEARCH_QUERY, query=query))["viewer"]["user"]
    return [node["id"] for node in user["messages"]["nodes"]]


async def test_saved_draft_keeps_id_and_unchanged_fields(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    draft = await create_draft(ada, subject="Ducks", to=[{"address": "carol@example.net"}])
    await ada(MESSAGE_UPDATE, id=draft["id"])
    before = await load_stream_position(environment, ada.user.id)
    clock.tick(minutes=1)
    answer = await save_draft_again(ada, draft, subject="Geese")
    current = answer["message"]
    assert answer["errors"] == []
    assert (current["id"], current["messageIdHeader"]) == (draft["id"], draft["messageIdHeader"])
    assert current["imap"]["uid"] > draft["imap"]["uid"]
    assert current["imap"]["modseq"] == before + 1
    assert current["imap"]["flags"] == ["\\Seen", "\\Flagged", "\\Draft", "work"]
    assert current["metadata"] == {"a": 1}
    assert current["thread"] == {"id": draft["thread"]["id"], "subject": "Geese", "messageCount": 1}
    message = await parse_stored_message(ada, answer)
    assert (str(message["Subject"]), message["To"]) == ("Geese", "carol@example.net")
    assert str(message["Date"]) == "Tue, 01 Jan 2030 00:01:00 +0000"
    expected_journal = [(EventType.MESSAGE_UPDATED, [global_ids.decode("Message", draft["id"])])]
    assert await load_journal_entries(environment, ada.user.id, before) == expected_journal
    drafts = await ada.load_mailbox("Drafts")
    assert (drafts.message_count, drafts.unseen_count, drafts.size, drafts.uid_next) == (
        1,
        0,
        current["size"],
        current["imap"]["uid"] + 1,
    )
    old_reference = {"mailbox": {"specialUse": "DRAFTS"}, "uid": draft["imap"]["uid"]}
    stale_save = await save_draft(ada, text="x", draft={"uid": old_reference})
    assert [(e["code"], e["path"]) for e in stale_save["errors"]] == [("NOT_FOUND", ["draft"])]
    by_uid = {"uid": {**old_reference, "uid": current["imap"]["uid"]}}
    third = await import_message(ada, raw="Subject: Swans\n\nx", seen=False, replaces=by_uid)
    assert third["message"]["id"] == draft["id"]
    assert third["message"]["imap"]["flags"] == ["\\Flagged", "\\Draft", "work"]


PIXEL = b"GIF89a"
IMAGE = new_attachment("dot.gif", PIXEL, contentType="image/gif", contentId="dot@here")
OTHER_IMAGE = new_attachment("new.gif", b"GIF87a", contentType="image/gif", contentId="dot@here")
HTML = '<img src="cid:dot@here">'
ATTACHMENT_CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["dot.gif", "a.txt", "b.txt"]),
    ({"html": HTML}, ["dot.gif", "a.txt", "b.txt"]),
    ({"html": '<img src="cid:d%6ft%40here">'}, ["dot.gif", "a.txt", "b.txt"]),
    ({"html": None}, ["a.txt", "b.txt"]),
    ({"html": "<p>No image.</p>"}, ["a.txt", "b.txt"]),
    ({"addAttachments": []}, ["dot.gif", "a.txt", "b.txt"]),
    ({"addAttachments": [FILE_C]}, ["dot.gif", "a.txt", "b.txt", "c.txt"]),
    ({"addAttachments": [FILE_C], "html": None}, ["a.txt", "b.txt", "c.txt"]),
    ({"addAttachments": [OTHER_IMAGE]}, ["new.gif", "a.txt", "b.txt"]),
    ({"addAttachments": [FILE_C], "remove": [2]}, ["dot.gif", "a.txt", "c.txt"]),
    ({"remove": [2, 1]}, ["dot.gif"]),
    ({"remove": [0]}, ["a.txt", "b.txt"]),
    ({"remove": [1, 1, 2], "html": None}, []),
]


async def test_saved_draft_keeps_attachments_unless_removed(ada: GraphQLClient) -> None:
    for case in each_case(ATTACHMENT_CASES):
        with case as (arguments, names):
            draft = await create_draft(ada, html=HTML, addAttachments=[FILE_A, IMAGE, FILE_B])
            filenames = [item["filename"] for item in draft["attachments"]]
            assert filenames == ["dot.gif", "a.txt", "b.txt"]
            fields = dict(arguments)
            removed = [{"id": draft["attachments"][nth]["id"]} for nth in fields.pop("remove", ())]
            answer = await save_draft_again(ada, draft, removeAttachments=removed, **fields)
            assert [name for name, *_ in await load_attached_files(ada, answer)] == names
            contents = {
                "a.txt": b"A",
                "b.txt": b"B",
                "c.txt": b"C",
                "dot.gif": PIXEL,
                "new.gif": b"GIF87a",
            }
            assert [data for *_, data in await load_attached_files(ada, answer)] == [
                contents[name] for name in names
            ]


async def test_kept_large_attachment_is_not_stored_again(
    ada: GraphQLClient, environment: Environment
) -> None:
    content = pseudo_random_bytes(300_000)
    upload_id = await upload_bytes(
        ada, content, content_disposition="attachment; filename=large.bin"
    )
    draft = await create_draft(ada, addAttachments=[{"upload": upload_id}])
    blob_names = [name async for name in environment.object_store.list()]
    for text in ("one", "two"):
        answer = await save_draft_again(ada, draft, text=text)
        ((name, _, _, data),) = await load_attached_files(ada, answer)
        assert (name, data) == ("large.bin", content)
    assert [name async for name in environment.object_store.list()] == blob_names
    (attachment,) = answer["message"]["attachments"]
    emptied = await save_draft_again(ada, draft, removeAttachments=[{"id": attachment["id"]}])
    assert await load_attached_files(ada, emptied) == []
    reference_rows = await select_rows(environment, "SELECT blob_id FROM message_blobs")
    assert len(reference_rows) == 1


async def test_saved_reply_keeps_source_and_its_attachments(ada: GraphQLClient) -> None:
    raw = (
        b"From: carol@example.com\r\nSubject: Plans\r\nMessage-ID: <1@example.com>\r\n"
        b"Content-Type: text/csv\r\nContent-Disposition: attachment; filename=p.csv\r\n\r\n1;2\r\n"
    )
    message_id = global_ids.encode("Message", (await deliver_to(ada, raw)).message_id)
    source = {"message": {"id": message_id}, "relation": "REPLY", "attachments": {"all": True}}
    draft = await create_draft(ada, original=source)
    patches: list[dict[str, Any]] = [{"subject": "Re: Plans"}, {"text": "Yes."}, {"cc": []}]
    for arguments in patches:
        answer = await save_draft(ada, draft={"id": draft["id"]}, **arguments)
        current = answer["message"]
        assert [name for name, *_ in await load_attached_files(ada, answer)] == ["p.csv"]
        assert (current["inReplyTo"], current["references"]) == (
            "<1@example.com>",
            ["<1@example.com>"],
        )
        assert current["thread"] == {**draft["thread"], "messageCount": 2}
        message = await parse_stored_message(ada, answer)
        assert (message["Subject"], message["To"]) == ("Re: Plans", "carol@example.com")
    refused = await save_draft_again(ada, draft, original=source)
    assert [(e["code"], e["path"]) for e in refused["errors"]] == [("VALIDATION", ["original"])]


async def test_draft_joins_and_leaves_thread_by_subject(
    ada: GraphQLClient, environment: Environment
) -> None:
    message_id = global_ids.encode(
        "Message", (await deliver_to(ada, raw_message("Plans"))).message_id
    )
    source = {"message": {"id": message_id}, "relation": "REPLY"}
    joined = await create_draft(ada, subject="Plans", original=source)
    assert (joined["thread"]["subject"], joined["thread"]["messageCount"]) == ("Plans", 2)
    assert len(await select_rows(environment, "SELECT id FROM threads")) == 1
    kept = (await save_draft_again(ada, joined, cc=[]))["message"]
    assert kept["thread"] == joined["thread"]


async def test_saved_draft_moves_to_given_mailbox(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(ada)
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(["Later"]))
    before = await load_stream_position(environment, ada.user.id)
    answer = await save_draft_again(ada, draft, mailbox={"path": "Later"})
    assert answer["message"]["mailbox"] == {"path": "Later"}
    assert (await ada.load_mailbox("Drafts")).message_count == 0
    later = await ada.load_mailbox("Later")
    assert (later.message_count, later.unseen_count) == (1, 0)
    ((facts,),) = await select_rows(
        environment, "SELECT facts FROM changes WHERE last > :n", n=before
    )
    for name in ("fromMailbox", "fromUid", "uid", "mailbox"):
        assert f'"{name}"' in str(facts).replace("'", '"')


async def test_removed_words_of_draft_are_not_found(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(
        ada, subject="Ducks", text="quack quack", addAttachments=[new_attachment("pond.txt")]
    )
    for indexed in (True, False, True):
        if indexed:
            await index_worker.index_next_batch_and_record_contacts(environment)
        assert await search_message_ids(ada, "quack" if indexed else "ducks") == [draft["id"]]
    await save_draft_again(ada, draft, subject="Geese", text="honk")
    for query in ("ducks", "quack"):
        assert await search_message_ids(ada, query) == []
    assert await search_message_ids(ada, "geese") == [draft["id"]]
    assert await index_worker.index_next_batch_and_record_contacts(environment) == 1
    for query, expected in (("quack", []), ("ducks", []), ("honk", [draft["id"]])):
        assert await search_message_ids(ada, query) == expected, query
    assert await search_message_ids(ada, "pond") == [draft["id"]]


class DelayedBlobStore(FolderStore):
    """A folder store whose reads wait until they are allowed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.read_requested, self.read_allowed = asyncio.Event(), asyncio.Event()

    async def get(self, name: str) -> bytes:
        self.read_requested.set()
        await self.read_allowed.wait()
        return await super().get(name)


async def test_draft_saved_during_indexing_is_indexed_with_new_content(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    text = base64.encodebytes(pseudo_random_bytes(400_000)).decode()
    raw = f"Subject: Ducks\n\n{text}"
    draft = (await import_message(ada, draft=True, raw=raw))["message"]
    blob_store = DelayedBlobStore(tmp_path / "blobs")
    indexing = asyncio.create_task(
        index_worker.index_next_batch_and_record_contacts(
            replace(environment, object_store=blob_store)
        )
    )
    async with asyncio.timeout(HANG_SECONDS):
        await blob_store.read_requested.wait()
    assert (await save_draft_again(ada, draft, subject="Geese"))["errors"] == []
    blob_store.read_allowed.set()
    assert await indexing == 1
    await blob_store.close()
    for _ in range(2):
        assert await search_message_ids(ada, "geese") == [draft["id"]]
        assert await search_message_ids(ada, "ducks") == []
        await index_worker.index_next_batch_and_record_contacts(environment)


async def test_concurrent_saves_leave_one_complete_version(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(ada, addAttachments=[FILE_A])
    versions = [
        {"subject": "One", "addAttachments": [FILE_B]},
        {"subject": "Two", "addAttachments": [FILE_C]},
    ]
    answers = await asyncio.gather(*(save_draft_again(ada, draft, **item) for item in versions))
    saved_drafts = [answer["message"] for answer in answers if not answer["errors"]]
    error_codes = [error["code"] for answer in answers for error in answer["errors"]]
    assert saved_drafts
    assert set(error_codes) <= {"STALE"}
    newest = max(saved_drafts, key=lambda message: message["imap"]["modseq"])
    stored = await select_rows(environment, "SELECT uid, modseq, subject FROM messages")
    names = [item["filename"] for item in newest["attachments"]]
    ((uid, modseq, subject),) = stored
    assert (uid, modseq) == (newest["imap"]["uid"], newest["imap"]["modseq"])
    assert names[-1] == {"One": "b.txt", "Two": "c.txt"}[subject]
    assert len(names) == 1 + len(saved_drafts)  # a second save begins with the result of the first


async def test_changed_or_deleted_draft_is_not_replaced(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(ada)
    draft_id = global_ids.decode("Message", draft["id"])
    ((digest,),) = await select_rows(environment, "SELECT sha256 FROM messages")
    message = await received_messages.parse_storable_message(raw_message("Mine"))
    blobs = await received_messages.store_blobs_once_per_tenant(
        environment, ada.user.tenant_id, message
    )
    placement = MessagePlacement(
        ada.user.id, (await ada.load_mailbox("Drafts")).id, environment.now()
    )

    async def replace_draft(earlier: EarlierDraft) -> None:
        await environment.run_transaction(
            lambda transaction: draft_replacement.replace_draft_message(
                transaction, InsertItem(message, blobs, placement), earlier
            ),
            ada.user.id,
        )

    before = await select_rows(environment, "SELECT * FROM messages")
    with pytest.raises(StaleObject) as stale:
        await replace_draft(EarlierDraft(draft_id, "other", {}))
    assert (stale.value.current_modseq, stale.value.path) == (draft["imap"]["modseq"], ["replaces"])
    assert await select_rows(environment, "SELECT * FROM messages") == before
    delete_mutation = (
        "mutation ($id: ID!) { messageDelete(input: {select: {ids: [$id]}}) { deletedCount } }"
    )
    await ada(delete_mutation, id=draft["id"])
    with pytest.raises(Conflict):
        await replace_draft(EarlierDraft(draft_id, digest, {}))
    answer = await save_draft_again(ada, draft)
    assert [error["code"] for error in answer["errors"]] == ["NOT_FOUND"]


async def test_only_own_drafts_are_replaced(ada: GraphQLClient, bob: GraphQLClient) -> None:
    foreign_draft = await create_draft(bob, addAttachments=[FILE_A])
    own_draft = await create_draft(ada)
    received_message = {"id": global_ids.encode("Message", (await deliver_to(ada)).message_id)}
    foreign_file = {"id": foreign_draft["attachments"][0]["id"]}
    missing_id = download_urls.attachment_id(global_ids.decode("Message", own_draft["id"]), 5)
    removed, added = ["set", "removeAttachments", "0"], ["set", "addAttachments", "0"]
    for previous, extra, code, path in (
        (foreign_draft, {}, "NOT_FOUND", ["draft"]),
        (received_message, {}, "CONFLICT", ["draft"]),
        (own_draft, {"removeAttachments": [foreign_file]}, "NOT_FOUND", removed),
        (own_draft, {"removeAttachments": [{"id": missing_id}]}, "NOT_FOUND", removed),
        (own_draft, {"removeAttachments": [{"id": "x"}]}, "VALIDATION", [*removed, "id"]),
        (own_draft, {"addAttachments": [{"content": "!"}]}, "VALIDATION", [*added, "content"]),
        (own_draft, {"from": {"address": bob.address}}, "FORBIDDEN_OPERATION", ["set", "from"]),
        (own_draft, {"mailbox": {"path": "Nowhere"}}, "NOT_FOUND", ["mailbox"]),
    ):
        before = (
            await load_stream_position(ada.environment, ada.user.id),
            await load_stream_position(ada.environment, bob.user.id),
        )
        (error,) = (await save_draft_again(ada, previous, **extra))["errors"]
        assert (error["code"], error["path"]) == (code, path)
        after = (
            await load_stream_position(ada.environment, ada.user.id),
            await load_stream_position(ada.environment, bob.user.id),
        )
        assert after == before


async def test_quota_counts_only_size_difference_of_saved_draft(
    ada: GraphQLClient, environment: Environment
) -> None:
    def raw_draft(size: int, character: str) -> str:
        header = "Subject: x\r\n\r\n"
        return header + character * (size - len(header))

    draft = (await import_message(ada, draft=True, raw=raw_draft(1000, "w")))["message"]

    async def replace_draft(size: int, character: str) -> list[str]:
        raw, replaced = raw_draft(size, character), {"id": draft["id"]}
        answer = await import_message(ada, raw=raw, replaces=replaced)
        return [error["code"] for error in answer["errors"]]

    async def set_quota(quota: int | None) -> None:
        async with environment.write_session() as session:
            await session.exec(update(User).where(col(User.id) == ada.user.id).values(quota=quota))

    await set_quota(1010)
    assert await replace_draft(1011, "x") == ["QUOTA_EXCEEDED"]
    assert await replace_draft(1010, "y") == []
    await set_quota(10)  # less than the stored size
    assert await replace_draft(1010, "z") == []
    assert await replace_draft(500, "z") == []
    assert await replace_draft(501, "z") == ["QUOTA_EXCEEDED"]
    grown = await save_draft_again(ada, draft, text="x" * 1000)
    assert [error["code"] for error in grown["errors"]] == ["QUOTA_EXCEEDED"]
    await set_quota(None)


async def test_save_statement_count_is_independent_of_save_count(
    ada: GraphQLClient, statements: list[str]
) -> None:
    draft = await create_draft(ada, addAttachments=[FILE_A, FILE_B])

    async def count_statements() -> int:
        del statements[:]
        assert (await save_draft_again(ada, draft, text=f"text {len(statements)}"))["errors"] == []
        return len(statements)

    first = await count_statements()
    for _ in range(5):
        await count_statements()
    assert await count_statements() == first


async def test_old_draft_content_is_garbage_collected(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    draft = await create_draft(
        ada, addAttachments=[new_attachment("big.bin", pseudo_random_bytes(20_000))]
    )
    removed = [{"id": draft["attachments"][0]["id"]}]
    await save_draft_again(ada, draft, removeAttachments=removed)
    clock.tick(days=2)
    await collect_garbage(environment, environment.object_store, list_objects=True)
    assert len(await select_rows(environment, "SELECT id FROM blobs")) == 1
    assert await search_message_ids(ada, "more") == [draft["id"]]
