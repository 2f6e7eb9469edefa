"""Drafts that are saved again: they keep their ids, and the files nobody sends anew."""

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
from mail.storage.message_insert import MessagePlacement
from models.errors import Conflict, StaleObject
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import Client, Clock, context, raw_message, receive
from tests.support.mail.multipart_message import noise
from tests.support.operations.message_sources import files, put, read_back, upload
from tests.support.stores.counter_check import journal, reached, rows

FIND = """
query ($query: String!) { viewer { user { messages(filter: {query: $query}) { nodes { id } } } } }
"""
MARK = """
mutation ($id: ID!) { messageUpdate(input: {select: {ids: [$id]},
  set: {flagged: true, addFlags: ["work"], metaData: {a: 1}}}) { errors { code } } }
"""
pytestmark = pytest.mark.usefixtures("examined")


def file(name: str, content: bytes = b"x", **more: Any) -> dict[str, Any]:
    return {"content": base64.b64encode(content).decode(), "filename": name, **more}


async def saved(client: Client, **given: Any) -> Any:
    answer = await upload(client, **{"draft": True, "text": "Dear Carol,", **given})
    assert answer["errors"] == []
    return answer["message"]


async def again(client: Client, draft: Any, **given: Any) -> Any:
    given = {"text": "Dear Carol, more", **given}
    return await upload(client, replacePrevious={"id": draft["id"]}, **given)


async def found(client: Client, query: str) -> list[str]:
    user = (await client(FIND, query=query))["viewer"]["user"]
    return [node["id"] for node in user["messages"]["nodes"]]


async def test_a_draft_keeps_its_id_and_all_that_is_not_said_anew(
    ada: Client, world: Environment, clock: Clock
) -> None:
    draft = await saved(ada, subject="Ducks", to=[{"address": "carol@example.net"}])
    await ada(MARK, id=draft["id"])
    before = await reached(world, ada.user.id)
    clock.tick(minutes=1)
    answer = await again(ada, draft, subject="Geese")
    now = answer["message"]
    assert (answer["errors"], answer["previousDeleted"]) == ([], True)
    assert (now["id"], now["messageId"]) == (draft["id"], draft["messageId"])
    assert now["uid"] > draft["uid"]
    assert now["modseq"] == before + 1
    assert now["flags"] == ["\\Seen", "\\Flagged", "\\Draft", "work"]
    assert now["metaData"] == {"a": 1}
    assert now["thread"] == {"id": draft["thread"]["id"], "subject": "Geese", "messageCount": 1}
    message = await read_back(ada, answer)
    assert (str(message["Subject"]), message["To"]) == ("Geese", None)
    assert str(message["Date"]) == "Tue, 01 Jan 2030 00:01:00 +0000"
    told = [(ChangeKind.MESSAGE_UPDATED, [global_ids.decode("Message", draft["id"])])]
    assert await journal(world, ada.user.id, before) == told
    box = await ada.box("Drafts")
    assert (box.total, box.unseen, box.size, box.uid_next) == (1, 0, now["size"], now["uid"] + 1)
    old = {"mailbox": {"specialUse": "DRAFTS"}, "uid": draft["uid"]}
    gone = await upload(ada, text="x", replacePrevious={"uid": old})
    assert [(e["code"], e["path"]) for e in gone["errors"]] == [("NOT_FOUND", ["replacePrevious"])]
    by_uid = {"uid": {**old, "uid": now["uid"]}}
    third = await upload(ada, raw="Subject: Swans\n\nx", unseen=True, replacePrevious=by_uid)
    assert third["message"]["id"] == draft["id"]
    assert third["message"]["flags"] == ["\\Flagged", "\\Draft", "work"]


PIXEL = b"GIF89a"
A, B, C = file("a.txt", b"A"), file("b.txt", b"B"), file("c.txt", b"C")
IMAGE = file("dot.gif", PIXEL, contentType="image/gif", cid="dot@here")
OTHER = file("new.gif", b"GIF87a", contentType="image/gif", cid="dot@here")
HTML = '<img src="cid:dot@here">'
KEPT: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["a.txt", "b.txt"]),
    ({"html": HTML}, ["dot.gif", "a.txt", "b.txt"]),
    ({"attachments": []}, []),
    ({"attachments": [], "html": HTML}, ["dot.gif"]),
    ({"attachments": [C]}, ["c.txt"]),
    ({"attachments": [C], "html": HTML}, ["dot.gif", "c.txt"]),
    ({"attachments": [OTHER], "html": HTML}, ["new.gif"]),
    ({"attachments": [C], "keep": [1]}, ["a.txt", "c.txt"]),
    ({"keep": [2, 1]}, ["a.txt", "b.txt"]),
    ({"keep": []}, []),
    ({"keep": [0]}, ["dot.gif"]),
    ({"attachments": [C], "keepAttachments": {"all": True}}, ["a.txt", "b.txt", "c.txt"]),
    ({"attachments": None, "keepAttachments": {"all": False}}, []),
]


@pytest.mark.parametrize(("given", "names"), KEPT, ids=str)
async def test_files_stay_unless_others_are_given(
    ada: Client, given: dict[str, Any], names: list[str]
) -> None:
    draft = await saved(ada, html=HTML, attachments=[A, IMAGE, B])
    shown = [each["filename"] for each in draft["attachments"]]
    assert shown == ["dot.gif", "a.txt", "b.txt"]
    given = dict(given)
    if "keep" in given:
        chosen = given.pop("keep")
        given["keepAttachments"] = {"ids": [draft["attachments"][nth]["id"] for nth in chosen]}
    answer = await again(ada, draft, **given)
    assert [name for name, *_ in await files(ada, answer)] == names
    contents = {"a.txt": b"A", "b.txt": b"B", "c.txt": b"C", "dot.gif": PIXEL, "new.gif": b"GIF87a"}
    assert [data for *_, data in await files(ada, answer)] == [contents[name] for name in names]


async def test_large_files_stay_without_being_stored_again(ada: Client, world: Environment) -> None:
    content = noise(300_000)
    key = await put(ada, content, content_disposition="attachment; filename=large.bin")
    draft = await saved(ada, attachments=[{"upload": key}])
    stored = [name async for name in world.object_store.list()]
    for text in ("one", "two"):
        answer = await again(ada, draft, text=text)
        ((name, _, _, data),) = await files(ada, answer)
        assert (name, data) == ("large.bin", content)
    assert [name async for name in world.object_store.list()] == stored
    emptied = await again(ada, draft, attachments=[])
    assert await files(ada, emptied) == []
    refers = await rows(world, "SELECT blob_id FROM message_blobs")
    assert len(refers) == 1


async def test_what_is_answered_stays_and_its_files_come_once(ada: Client) -> None:
    raw = (
        b"From: carol@example.com\r\nSubject: Plans\r\nMessage-ID: <1@example.com>\r\n"
        b"Content-Type: text/csv\r\nContent-Disposition: attachment; filename=p.csv\r\n\r\n1;2\r\n"
    )
    key = global_ids.encode("Message", (await receive(ada, raw)).message_id)
    reference = {"message": {"id": key}, "action": "REPLY", "attachments": {"all": True}}
    draft = await saved(ada, reference=reference)
    for given in ({"subject": "Re: Plans"}, {"reference": reference}):
        answer = await again(ada, draft, **given)
        now = answer["message"]
        assert [name for name, *_ in await files(ada, answer)] == ["p.csv"]
        assert (now["inReplyTo"], now["references"]) == ("<1@example.com>", ["<1@example.com>"])
        assert now["thread"] == {**draft["thread"], "messageCount": 2}


async def test_a_draft_changes_its_conversation_with_what_it_answers(
    ada: Client, world: Environment
) -> None:
    draft = await saved(ada, subject="Plans")
    key = global_ids.encode("Message", (await receive(ada, raw_message("Plans"))).message_id)
    reference = {"message": {"id": key}, "action": "REPLY"}
    joined = (await again(ada, draft, reference=reference))["message"]
    assert joined["thread"]["id"] != draft["thread"]["id"]
    assert (joined["thread"]["subject"], joined["thread"]["messageCount"]) == ("Plans", 2)
    assert len(await rows(world, "SELECT id FROM threads")) == 1
    apart = (await again(ada, draft, subject="Other plans"))["message"]
    assert apart["thread"]["id"] not in (joined["thread"]["id"], draft["thread"]["id"])
    assert apart["thread"]["messageCount"] == 1


async def test_a_draft_may_change_its_folder(ada: Client, world: Environment) -> None:
    draft = await saved(ada)
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Later"]))
    before = await reached(world, ada.user.id)
    answer = await again(ada, draft, mailbox={"path": "Later"}, unseen=True)
    assert answer["message"]["mailbox"] == {"path": "Later"}
    assert (await ada.box("Drafts")).total == 0
    assert ((await ada.box("Later")).total, (await ada.box("Later")).unseen) == (1, 1)
    ((facts,),) = await rows(world, "SELECT facts FROM changes WHERE last > :n", n=before)
    for name in ("fromMailbox", "fromUid", "uid", "mailbox"):
        assert f'"{name}"' in str(facts).replace("'", '"')


async def test_words_that_are_gone_are_not_found(ada: Client, world: Environment) -> None:
    draft = await saved(ada, subject="Ducks", text="quack quack", attachments=[file("pond.txt")])
    for indexed in (True, False, True):
        if indexed:
            await index_worker.index_next_batch(world)
        assert await found(ada, "quack" if indexed else "ducks") == [draft["id"]]
    await again(ada, draft, subject="Geese", text="honk")
    for query in ("ducks", "quack"):
        assert await found(ada, query) == []
    assert await found(ada, "geese") == [draft["id"]]
    assert await index_worker.index_next_batch(world) == 1
    for query, keys in (("quack", []), ("ducks", []), ("honk", [draft["id"]])):
        assert await found(ada, query) == keys, query
    assert await found(ada, "pond") == [draft["id"]]


class Late(FolderStore):
    """A store whose reads wait until something has happened."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked, self.free = asyncio.Event(), asyncio.Event()

    async def get(self, name: str) -> bytes:
        self.asked.set()
        await self.free.wait()
        return await super().get(name)


async def test_a_draft_saved_while_it_is_indexed_is_indexed_as_it_is(
    ada: Client, world: Environment, tmp_path: Path
) -> None:
    text = base64.encodebytes(noise(400_000)).decode()
    draft = await saved(ada, text=None, raw=f"Subject: Ducks\n\n{text}")
    late = Late(tmp_path / "blobs")
    work = asyncio.create_task(index_worker.index_next_batch(replace(world, object_store=late)))
    async with asyncio.timeout(10):
        await late.asked.wait()
    assert (await again(ada, draft, subject="Geese"))["errors"] == []
    late.free.set()
    assert await work == 1
    await late.close()
    for _ in range(2):
        assert await found(ada, "geese") == [draft["id"]]
        assert await found(ada, "ducks") == []
        await index_worker.index_next_batch(world)


async def test_two_who_save_at_once_end_with_one_of_both(ada: Client, world: Environment) -> None:
    draft = await saved(ada, attachments=[A])
    given = [{"subject": "One", "attachments": [B]}, {"subject": "Two", "attachments": [C]}]
    answers = await asyncio.gather(*(again(ada, draft, **each) for each in given))
    won = [answer["message"] for answer in answers if not answer["errors"]]
    lost = [error["code"] for answer in answers for error in answer["errors"]]
    assert won
    assert set(lost) <= {"STALE"}
    last = max(won, key=lambda message: message["modseq"])
    stored = await rows(world, "SELECT uid, modseq, subject FROM messages")
    (name,) = [each["filename"] for each in last["attachments"]]
    subject = "One" if name == "b.txt" else "Two"
    assert stored == [(last["uid"], last["modseq"], subject)]


async def test_what_has_changed_or_gone_meanwhile_is_not_replaced(
    ada: Client, world: Environment
) -> None:
    draft = await saved(ada)
    key = global_ids.decode("Message", draft["id"])
    ((digest,),) = await rows(world, "SELECT digest FROM messages")
    letter = await received_messages.read_message(raw_message("Mine"))
    kept = await received_messages.store_blobs(world, ada.user.tenant_id, letter)
    to = MessagePlacement(ada.user.id, (await ada.box("Drafts")).id, world.now())

    async def tried(earlier: EarlierDraft) -> None:
        await world.run_transaction(
            lambda turn: draft_replacement.replace_message(turn, letter, kept, to, earlier),
            ada.user.id,
        )

    before = await rows(world, "SELECT * FROM messages")
    with pytest.raises(StaleObject) as stale:
        await tried(EarlierDraft(key, "other", {}))
    assert (stale.value.current_modseq, stale.value.path) == (draft["modseq"], ["replacePrevious"])
    assert await rows(world, "SELECT * FROM messages") == before
    gone = "mutation ($id: ID!) { messageDelete(input: {select: {ids: [$id]}}) { deletedCount } }"
    await ada(gone, id=draft["id"])
    with pytest.raises(Conflict):
        await tried(EarlierDraft(key, digest, {}))
    answer = await again(ada, draft)
    assert [error["code"] for error in answer["errors"]] == ["NOT_FOUND"]


async def test_only_ones_own_drafts_are_replaced(ada: Client, bob: Client) -> None:
    draft = await saved(bob, attachments=[A])
    mine = await saved(ada)
    letter = {"id": global_ids.encode("Message", (await receive(ada)).message_id)}
    theirs = {"ids": [draft["attachments"][0]["id"]]}
    numbered = {"ids": [download_urls.attachment_id(global_ids.decode("Message", mine["id"]), 5)]}
    for earlier, more, code, path in (
        (draft, {}, "NOT_FOUND", ["replacePrevious"]),
        (letter, {}, "CONFLICT", ["replacePrevious"]),
        (mine, {"keepAttachments": theirs}, "NOT_FOUND", ["keepAttachments", "ids"]),
        (mine, {"keepAttachments": numbered}, "NOT_FOUND", ["keepAttachments", "ids"]),
        (mine, {"keepAttachments": {"ids": ["x"]}}, "VALIDATION", ["keepAttachments", "ids"]),
        (mine, {"from": {"address": bob.address}}, "FORBIDDEN_OPERATION", ["from"]),
        (mine, {"mailbox": {"path": "Nowhere"}}, "NOT_FOUND", ["mailbox"]),
    ):
        before = await reached(ada.world, ada.user.id), await reached(ada.world, bob.user.id)
        (error,) = (await again(ada, earlier, **more))["errors"]
        assert (error["code"], error["path"]) == (code, path)
        after = await reached(ada.world, ada.user.id), await reached(ada.world, bob.user.id)
        assert after == before
    whole = await upload(
        ada, raw="a: b", replacePrevious={"id": mine["id"]}, keepAttachments={"all": True}
    )
    assert [error["path"] for error in whole["errors"]] == [["keepAttachments"]]


async def test_only_the_difference_is_counted(ada: Client, world: Environment) -> None:
    def whole(size: int, letter: str) -> dict[str, str | None]:
        head = "Subject: x\r\n\r\n"
        return {"text": None, "raw": head + letter * (size - len(head))}

    draft = await saved(ada, **whole(1000, "w"))

    async def allow(quota: int | None) -> None:
        async with world.write_session() as session:
            await session.exec(update(User).where(col(User.id) == ada.user.id).values(quota=quota))

    await allow(1010)
    more = await again(ada, draft, **whole(1011, "x"))
    assert [error["code"] for error in more["errors"]] == ["QUOTA_EXCEEDED"]
    assert (await again(ada, draft, **whole(1010, "y")))["errors"] == []
    await allow(10)  # less than there is already
    assert (await again(ada, draft, **whole(1010, "z")))["errors"] == []
    assert (await again(ada, draft, **whole(500, "z")))["errors"] == []
    assert [e["code"] for e in (await again(ada, draft, **whole(501, "z")))["errors"]] == [
        "QUOTA_EXCEEDED"
    ]
    await allow(None)


async def test_a_draft_costs_the_same_however_often_it_was_saved(
    ada: Client, statements: list[str]
) -> None:
    draft = await saved(ada, attachments=[A, B])

    async def cost() -> int:
        del statements[:]
        assert (await again(ada, draft, text=f"text {len(statements)}"))["errors"] == []
        return len(statements)

    first = await cost()
    for _ in range(5):
        await cost()
    assert await cost() == first


async def test_what_a_draft_was_is_collected(ada: Client, world: Environment, clock: Clock) -> None:
    draft = await saved(ada, attachments=[file("big.bin", noise(20_000))])
    await again(ada, draft, attachments=[])
    clock.tick(days=2)
    await collect_garbage(world, world.object_store, list_objects=True)
    assert len(await rows(world, "SELECT id FROM blobs")) == 1
    assert await found(ada, "more") == [draft["id"]]
