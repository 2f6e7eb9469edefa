"""Test draftSave: a saved draft keeps its ID, and all that the patch does not change."""

import asyncio
import base64
import email
from dataclasses import replace
from email import policy
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
from mail.storage.message_insert import MessagePlacement
from models.errors import Conflict, StaleObject
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to, raw_message
from tests.support.mail.multipart_message import pseudo_random_bytes
from tests.support.operations.message_sources import (
    import_message,
    load_attached_files,
    load_message_source,
    names_and_addresses,
    parse_stored_message,
    save_draft,
    upload_bytes,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

SEARCH_QUERY = """
query ($query: String!) { viewer { user { messages(filter: {query: $query}) { nodes { id } } } } }
"""
MESSAGE_UPDATE = """
mutation ($id: ID!) { messageUpdate(input: {select: {ids: [$id]},
  set: {flagged: true, addFlags: ["work"], metadata: {a: 1}}}) { errors { code } } }
"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


def new_attachment(name: str, content: bytes = b"x", **extra: Any) -> dict[str, Any]:
    return {"content": base64.b64encode(content).decode(), "filename": name, **extra}


async def create_draft(client: GraphQLClient, **fields: Any) -> Any:
    answer = await save_draft(client, **{"text": "Dear Carol,", **fields})
    assert answer["errors"] == []
    return answer["message"]


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
    assert (current["id"], current["messageId"]) == (draft["id"], draft["messageId"])
    assert current["uid"] > draft["uid"]
    assert current["modseq"] == before + 1
    assert current["flags"] == ["\\Seen", "\\Flagged", "\\Draft", "work"]
    assert current["metadata"] == {"a": 1}
    assert current["thread"] == {"id": draft["thread"]["id"], "subject": "Geese", "messageCount": 1}
    message = await parse_stored_message(ada, answer)
    assert (str(message["Subject"]), message["To"]) == ("Geese", "carol@example.net")
    assert str(message["Date"]) == "Tue, 01 Jan 2030 00:01:00 +0000"
    expected_journal = [(EventType.MESSAGE_UPDATED, [global_ids.decode("Message", draft["id"])])]
    assert await load_journal_entries(environment, ada.user.id, before) == expected_journal
    drafts = await ada.load_mailbox("Drafts")
    assert (drafts.total, drafts.unseen, drafts.size, drafts.uid_next) == (
        1,
        0,
        current["size"],
        current["uid"] + 1,
    )
    old_reference = {"mailbox": {"specialUse": "DRAFTS"}, "uid": draft["uid"]}
    stale_save = await save_draft(ada, text="x", draft={"uid": old_reference})
    assert [(e["code"], e["path"]) for e in stale_save["errors"]] == [("NOT_FOUND", ["draft"])]
    by_uid = {"uid": {**old_reference, "uid": current["uid"]}}
    third = await import_message(ada, raw="Subject: Swans\n\nx", seen=False, replaces=by_uid)
    assert third["message"]["id"] == draft["id"]
    assert third["message"]["flags"] == ["\\Flagged", "\\Draft", "work"]


PIXEL = b"GIF89a"
FILE_A, FILE_B, FILE_C = (
    new_attachment("a.txt", b"A"),
    new_attachment("b.txt", b"B"),
    new_attachment("c.txt", b"C"),
)
IMAGE = new_attachment("dot.gif", PIXEL, contentType="image/gif", contentId="dot@here")
OTHER_IMAGE = new_attachment("new.gif", b"GIF87a", contentType="image/gif", contentId="dot@here")
HTML = '<img src="cid:dot@here">'
ATTACHMENT_CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["dot.gif", "a.txt", "b.txt"]),
    ({"html": HTML}, ["dot.gif", "a.txt", "b.txt"]),
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


@pytest.mark.parametrize(("arguments", "names"), ATTACHMENT_CASES, ids=str)
async def test_saved_draft_keeps_attachments_unless_removed(
    ada: GraphQLClient, arguments: dict[str, Any], names: list[str]
) -> None:
    draft = await create_draft(ada, html=HTML, addAttachments=[FILE_A, IMAGE, FILE_B])
    filenames = [item["filename"] for item in draft["attachments"]]
    assert filenames == ["dot.gif", "a.txt", "b.txt"]
    arguments = dict(arguments)
    removed = [{"id": draft["attachments"][nth]["id"]} for nth in arguments.pop("remove", ())]
    answer = await save_draft_again(ada, draft, removeAttachments=removed, **arguments)
    assert [name for name, *_ in await load_attached_files(ada, answer)] == names
    contents = {"a.txt": b"A", "b.txt": b"B", "c.txt": b"C", "dot.gif": PIXEL, "new.gif": b"GIF87a"}
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
    draft = await create_draft(ada, source=source)
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
    refused = await save_draft_again(ada, draft, source=source)
    assert [(e["code"], e["path"]) for e in refused["errors"]] == [("VALIDATION", ["source"])]


async def test_draft_joins_and_leaves_thread_by_subject(
    ada: GraphQLClient, environment: Environment
) -> None:
    message_id = global_ids.encode(
        "Message", (await deliver_to(ada, raw_message("Plans"))).message_id
    )
    source = {"message": {"id": message_id}, "relation": "REPLY"}
    joined = await create_draft(ada, subject="Plans", source=source)
    assert (joined["thread"]["subject"], joined["thread"]["messageCount"]) == ("Plans", 2)
    assert len(await select_rows(environment, "SELECT id FROM threads")) == 1
    kept = (await save_draft_again(ada, joined, cc=[]))["message"]
    assert kept["thread"] == joined["thread"]


async def test_saved_draft_moves_to_given_mailbox(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(ada)
    await mailbox_loaders.create_mailboxes(client_context(ada), NewMailboxes(["Later"]))
    before = await load_stream_position(environment, ada.user.id)
    answer = await save_draft_again(ada, draft, mailbox={"path": "Later"})
    assert answer["message"]["mailbox"] == {"path": "Later"}
    assert (await ada.load_mailbox("Drafts")).total == 0
    later = await ada.load_mailbox("Later")
    assert (later.total, later.unseen) == (1, 0)
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
            await index_worker.index_next_batch(environment)
        assert await search_message_ids(ada, "quack" if indexed else "ducks") == [draft["id"]]
    await save_draft_again(ada, draft, subject="Geese", text="honk")
    for query in ("ducks", "quack"):
        assert await search_message_ids(ada, query) == []
    assert await search_message_ids(ada, "geese") == [draft["id"]]
    assert await index_worker.index_next_batch(environment) == 1
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
        index_worker.index_next_batch(replace(environment, object_store=blob_store))
    )
    async with asyncio.timeout(10):
        await blob_store.read_requested.wait()
    assert (await save_draft_again(ada, draft, subject="Geese"))["errors"] == []
    blob_store.read_allowed.set()
    assert await indexing == 1
    await blob_store.close()
    for _ in range(2):
        assert await search_message_ids(ada, "geese") == [draft["id"]]
        assert await search_message_ids(ada, "ducks") == []
        await index_worker.index_next_batch(environment)


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
    newest = max(saved_drafts, key=lambda message: message["modseq"])
    stored = await select_rows(environment, "SELECT uid, modseq, subject FROM messages")
    names = [item["filename"] for item in newest["attachments"]]
    ((uid, modseq, subject),) = stored
    assert (uid, modseq) == (newest["uid"], newest["modseq"])
    assert names[-1] == {"One": "b.txt", "Two": "c.txt"}[subject]
    assert len(names) == 1 + len(saved_drafts)  # a second save begins with the result of the first


async def test_changed_or_deleted_draft_is_not_replaced(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(ada)
    draft_id = global_ids.decode("Message", draft["id"])
    ((digest,),) = await select_rows(environment, "SELECT digest FROM messages")
    message = await received_messages.parse_storable_message(raw_message("Mine"))
    blobs = await received_messages.store_blobs(environment, ada.user.tenant_id, message)
    placement = MessagePlacement(
        ada.user.id, (await ada.load_mailbox("Drafts")).id, environment.now()
    )

    async def replace_draft(earlier: EarlierDraft) -> None:
        await environment.run_transaction(
            lambda transaction: draft_replacement.replace_message(
                transaction, message, blobs, placement, earlier
            ),
            ada.user.id,
        )

    before = await select_rows(environment, "SELECT * FROM messages")
    with pytest.raises(StaleObject) as stale:
        await replace_draft(EarlierDraft(draft_id, "other", {}))
    assert (stale.value.current_modseq, stale.value.path) == (draft["modseq"], ["replaces"])
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


async def read_fields(client: GraphQLClient, draft: Any) -> dict[str, Any]:
    """Read what the fields of a draft say, without those that each save changes."""
    raw = await load_message_source(client, draft["id"])
    message = email.message_from_string(raw, policy=policy.SMTPUTF8)
    names = ("From", "To", "Cc", "Bcc", "Reply-To", "Subject", "X-Priority", "X-Tag", "Message-ID")
    values: dict[str, Any] = {name: message.get_all(name) for name in names}
    for part in message.walk():
        if not part.is_multipart():
            values[part.get_filename() or part.get_content_type()] = part.get_content()
    return values


FULL_DRAFT: dict[str, Any] = {
    "from": {"address": "ada@example.org", "name": "Ada, \u00dcnal"},
    "to": [{"address": "carol@example.net", "name": "Carol \u00dc"}],
    "cc": [{"address": "dan@example.net"}],
    "bcc": [{"address": "eve@example.net"}],
    "replyTo": [{"address": "desk@example.net", "name": "Desk"}],
    "subject": "D\u00fccks  and geese, = ?",
    "text": "Gr\u00fc\u00dfe \n\n-- \nAda",
    "html": "<p>Gr\u00fc\u00dfe</p>",
    "headers": [{"key": "X-Tag", "value": "one \u00fc"}, {"key": "X-Tag", "value": "two"}],
    "priority": "HIGH",
    "addAttachments": [FILE_A, FILE_B],
}


@pytest.mark.parametrize(
    ("patch", "changed"),
    [
        ({"subject": "Geese"}, {"Subject": ["Geese"]}),
        ({"subject": None}, {"Subject": [""]}),
        ({"to": None}, {"To": None}),
        ({"cc": []}, {"Cc": None}),
        ({"bcc": None}, {"Bcc": None}),
        ({"replyTo": None}, {"Reply-To": None}),
        ({"headers": None}, {"X-Tag": None}),
        ({"priority": None}, {"X-Priority": None}),
        ({"from": None}, {"From": ["ada@example.org"]}),
        ({"text": "Bye.\n"}, {"text/plain": "Bye.\n"}),
        ({"html": "<p>Bye.</p>"}, {"text/plain": "Bye.", "text/html": "<p>Bye.</p>"}),
        ({"html": None}, {"text/html": ...}),
        ({"metadata": {"a": 1}}, {}),
    ],
    ids=str,
)
async def test_patch_changes_only_its_fields(
    ada: GraphQLClient, patch: dict[str, Any], changed: dict[str, Any]
) -> None:
    draft = await create_draft(ada, **FULL_DRAFT)
    expected = await read_fields(ada, draft)
    for name, value in changed.items():
        if value is ...:
            del expected[name]
        else:
            expected[name] = value
    for _ in range(3):
        answer = await save_draft(ada, draft={"id": draft["id"]}, **patch)
        assert answer["errors"] == []
        assert answer["message"]["id"] == draft["id"]
        found = await read_fields(ada, draft)
        for values in (found, expected):
            values["text/plain"] = values["text/plain"].rstrip("\r\n")
        assert found == expected


async def test_null_clears_metadata_and_absence_keeps_it(ada: GraphQLClient) -> None:
    draft = await create_draft(ada, metadata={"a": 1})
    assert draft["metadata"] == {"a": 1}
    kept = await save_draft(ada, draft={"id": draft["id"]}, subject="x")
    assert kept["message"]["metadata"] == {"a": 1}
    cleared = await save_draft(ada, draft={"id": draft["id"]}, metadata=None)
    assert (cleared["errors"], cleared["message"]["metadata"]) == ([], None)


async def test_save_without_changes_is_refused(ada: GraphQLClient) -> None:
    draft = await create_draft(ada)
    answer = await save_draft(ada, draft={"id": draft["id"]})
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [("VALIDATION", ["set"])]
    assert (await save_draft(ada))["errors"] == []  # a new draft can be empty


async def test_save_after_other_change_is_stale(ada: GraphQLClient) -> None:
    draft = await create_draft(ada, addAttachments=[FILE_A, FILE_B])
    condition = {"draft": {"id": draft["id"]}, "ifUnchangedSince": draft["modseq"]}
    saved = await save_draft(ada, **condition, subject="One")
    assert saved["errors"] == []
    removed = [{"id": draft["attachments"][0]["id"]}]
    for patch in ({"subject": "Two"}, {"removeAttachments": removed}):
        refused = await save_draft(ada, **condition, **patch)
        assert [(e["code"], e["path"]) for e in refused["errors"]] == [
            ("STALE", ["ifUnchangedSince"])
        ]
    condition["ifUnchangedSince"] = saved["message"]["modseq"]
    assert (await save_draft(ada, **condition, removeAttachments=removed))["errors"] == []


async def test_header_change_keeps_body_byte_for_byte(ada: GraphQLClient) -> None:
    body = (
        'Content-Type: multipart/mixed; boundary="b"\r\nMIME-Version: 1.0\r\n\r\npreamble\r\n'
        "--b\r\nContent-Type: text/calendar; method=REQUEST\r\n\r\nBEGIN:VCALENDAR\r\n"
        "--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nx\r\n--b--\r\nend\r\n"
    )
    raw = "Subject: old\r\nFrom: ada@example.org\r\n" + body
    draft = (await import_message(ada, raw=raw, draft=True))["message"]
    assert (await save_draft(ada, draft={"id": draft["id"]}, subject="new"))["errors"] == []
    source = await load_message_source(ada, draft["id"])
    assert source.endswith(body)
    assert "Subject: new\r\n" in source


async def test_attached_message_stays_a_message(ada: GraphQLClient) -> None:
    message_id = global_ids.encode(
        "Message", (await deliver_to(ada, raw_message("Plans"))).message_id
    )
    source = {"message": {"id": message_id}, "relation": "FORWARD", "includeMessage": True}
    draft = await create_draft(ada, source=source)
    for text in ("one", "two"):
        answer = await save_draft(ada, draft={"id": draft["id"]}, text=text)
        message = await parse_stored_message(ada, answer)
        types = [part.get_content_type() for part in message.iter_attachments()]
        assert types == ["message/rfc822"]


async def test_changed_sender_replaces_fields_of_earlier_identity(ada: GraphQLClient) -> None:
    document = """mutation ($input: IdentityCreateInput!) {
      identityCreate(input: $input) { identity { id } errors { code path } } }"""
    identity = {
        "address": "ada@example.org", "name": "Desk", "replyTo": "desk@example.org",
        "bcc": ["archive@example.net"],
    }  # fmt: skip
    created = (await ada(document, input=identity))["identityCreate"]
    assert created["errors"] == []
    by_identity = {"identity": {"id": created["identity"]["id"]}}
    draft = await create_draft(ada, **by_identity)
    to = {"to": [{"address": "carol@example.net"}]}
    answer = await save_draft(ada, draft={"id": draft["id"]}, **to)
    message = await parse_stored_message(ada, answer)
    assert names_and_addresses(message, "Bcc") == [("", "archive@example.net")]
    assert names_and_addresses(message, "Reply-To") == [("", "desk@example.org")]
