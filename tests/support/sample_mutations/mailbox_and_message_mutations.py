"""Calls about folders and messages, and what is made of them."""

from dataclasses import replace

import httpx

from graph.app import create_app
from graph.types import global_ids
from mail.storage.blobs.object_stores import FolderStore
from mail.storage.blobs.tiered_store import TieredStore
from models.runtime import leases
from models.submission.compose_requests import ComposeListener
from models.users.roles import Role
from tests.conftest import Client, make_client, receive
from tests.support.sample_mutations.mutation_call import Call, call

THREADS = "{ viewer { user { messages { nodes { thread { id } } } } } }"


@call
async def archive_restore(ada: Client, root: Client) -> Call:
    assert (await (await message_delete(ada, root))(ada))["errors"] == []
    given = {"start": "2029-01-01T00:00:00Z", "end": "2031-01-01T00:00:00Z"}
    return Call("archiveRestore", given, "task { kind state total }")


@call
async def archived_message_restore(ada: Client, root: Client) -> Call:
    deleted = await message_delete(ada, root)
    assert (await deleted(ada))["errors"] == []
    key = global_ids.encode(
        "ArchivedMessage", global_ids.decode("Message", deleted.input["select"]["ids"][0])
    )
    payload = "restored { mailbox { path } message { subject } }"
    return Call("archivedMessageRestore", {"ids": [key]}, payload)


@call
async def mailbox_create(_ada: Client, _root: Client) -> Call:
    return Call("mailboxCreate", {"paths": ["Clients/Eve"]}, "mailboxes { path }")


@call
async def mailbox_delete(ada: Client, root: Client) -> Call:
    await _filed(ada, root)
    return Call("mailboxDelete", {"mailboxes": [{"path": "Clients/Eve"}]}, "deletedIds")


@call
async def mailbox_update(ada: Client, root: Client) -> Call:
    await (await mailbox_create(ada, root))(ada)
    patch = {"retention": "P30D", "specialUse": "ARCHIVE", "subscribed": False}
    given = {"mailboxes": [{"path": "Clients"}], "set": patch}
    return Call("mailboxUpdate", given, "mailboxes { path specialUse retention }")


@call
async def mailbox_subscribe(ada: Client, root: Client) -> Call:
    await (await mailbox_unsubscribe(ada, root))(ada)
    return Call("mailboxSubscribe", {"paths": ["Sent"]}, "mailboxes { path subscribed }")


@call
async def mailbox_unsubscribe(_ada: Client, _root: Client) -> Call:
    return Call("mailboxUnsubscribe", {"paths": ["Sent"]}, "mailboxes { path subscribed }")


@call
async def mailbox_metadata_set(_ada: Client, _root: Client) -> Call:
    given = {"mailbox": {"path": "INBOX"}, "key": "/private/comment", "value": "x"}
    return Call("mailboxMetadataSet", given, "entries { key value }")


@call
async def mailbox_metadata_unset(ada: Client, root: Client) -> Call:
    await (await mailbox_metadata_set(ada, root))(ada)
    given = {"mailbox": {"path": "INBOX"}, "key": "/private/comment"}
    return Call("mailboxMetadataUnset", given, "keys")


@call
async def mailbox_share_set(ada: Client, _root: Client) -> Call:
    await make_client(ada.world, ada.http, "zoe")
    given = {"mailbox": {"path": "INBOX"}, "user": {"username": "zoe"}, "rights": ["READ"]}
    return Call("mailboxShareSet", given, "mailboxes { path acl { rights } }")


@call
async def mailbox_state_set(_ada: Client, _root: Client) -> Call:
    given = {"users": {"usernames": ["ada"]}, "mailbox": {"path": "INBOX"}, "minNextUid": 1000}
    given |= {"guid": "0123456789abcdef" * 2, "minHighestModseq": 1000}
    return Call("mailboxStateSet", given, "mailboxes { guid uidNext modseq }", by_root=True)


@call
async def mailbox_repair(_ada: Client, _root: Client) -> Call:
    given = {"users": {"usernames": ["ada"]}, "mailboxMasks": ["*"]}
    payload = "repaired { findings fixed }"
    return Call("mailboxRepair", given, payload, journaled=False, by_root=True)


@call
async def mailbox_rename(ada: Client, root: Client) -> Call:
    await _filed(ada, root)
    given = {"mailbox": {"path": "Clients"}, "newPath": "Old/Clients"}
    return Call("mailboxRename", given, "mailboxes { path }")


@call
async def message_delete(ada: Client, _root: Client) -> Call:
    key = await _message(ada)
    given = {"select": {"ids": [key]}}
    return Call("messageDelete", given, "deletedCount undo { token }")


@call
async def message_move(ada: Client, root: Client) -> Call:
    key = await _message(ada)
    await (await mailbox_create(ada, root))(ada)
    given = {"select": {"ids": [key]}, "to": {"path": "Clients/Eve"}, "set": {"flagged": True}}
    payload = "movedCount moved { oldUid newUid message { subject } } undo { expiresAt }"
    return Call("messageMove", given, payload)


@call
async def message_copy(ada: Client, _root: Client) -> Call:
    given = {"select": {"ids": [await _message(ada)]}, "to": {"specialUse": "SENT"}}
    return Call("messageCopy", given, "copiedCount copied { oldUid newUid message { subject } }")


@call
async def message_deduplicate(ada: Client, _root: Client) -> Call:
    given = {"select": {"ids": [await _message(ada)]}, "to": {"path": "INBOX"}}
    assert (await Call("messageCopy", given)(ada))["errors"] == []
    return Call("messageDeduplicate", {"select": {"all": True}}, "deletedCount undo { expiresAt }")


@call
async def message_send(_ada: Client, _root: Client) -> Call:
    given = {"to": [{"address": "carol@example.com"}], "subject": "Hello", "text": "Hi."}
    return Call("messageSend", given, "submission { state } message { subject }")


@call
async def message_forward(ada: Client, _root: Client) -> Call:
    given = {"message": {"id": await _message(ada)}, "addresses": ["carol@example.net"]}
    return Call("messageForward", given, "forwarded { seq type value }")


@call
async def message_tier_move(ada: Client, _root: Client) -> Call:
    hot = ada.world.object_store
    assert isinstance(hot, FolderStore)
    folder = hot.folder.parent
    world = replace(ada.world, object_store=TieredStore(hot, FolderStore(folder / "cold")))
    transport = httpx.ASGITransport(app=create_app(world, spool_folder=folder))
    http = httpx.AsyncClient(transport=transport, base_url="http://test")
    boss = await make_client(world, http, "boss", role=Role.ADMIN)
    given = {"select": {"users": {"usernames": ["ada"]}, "ids": [await _message(ada)]}}
    return Call("messageTierMove", given, "movedCount", journaled=False, by=boss)


@call
async def message_update(ada: Client, _root: Client) -> Call:
    key = await _message(ada)
    given = {"select": {"ids": [key]}, "set": {"seen": True, "addFlags": ["work"]}}
    return Call("messageUpdate", given, "updatedCount messages { flags } undo { token }")


@call
async def thread_update(ada: Client, _root: Client) -> Call:
    given = {"ids": [await _thread(ada)], "set": {"seen": True}, "muted": True}
    return Call("threadUpdate", given, "threads { unseenCount muted } undo { expiresAt }")


@call
async def label_set(_ada: Client, _root: Client) -> Call:
    given = {"keyword": "work", "name": "Work", "color": "#1E90FF"}
    return Call("labelSet", given, "labels { keyword name color total }")


@call
async def saved_search_set(_ada: Client, _root: Client) -> Call:
    given = {"name": "Unread", "query": "is:unread"}
    return Call("savedSearchSet", given, "savedSearches { name query total }")


@call
async def message_upload(ada: Client, _root: Client) -> Call:
    file = {"content": "eA==", "filename": "a.txt"}
    first = {"mailbox": {"specialUse": "DRAFTS"}, "draft": True, "attachments": [file]}
    made = await Call("messageUpload", first, "message { id }")(ada)
    saved = {"replacePrevious": {"id": made["message"]["id"]}, "mailbox": {"path": "INBOX"}}
    given = {**saved, "subject": "Mine", "to": [{"address": "carol"}]}
    payload = "message { subject attachments { filename } } previousDeleted warnings { path }"
    return Call("messageUpload", given, payload)


@call
async def message_submit(ada: Client, _root: Client) -> Call:
    given = {"mailbox": {"specialUse": "DRAFTS"}, "draft": True, "text": "Hi."}
    given = {**given, "to": [{"address": "carol@example.com"}]}
    made = await Call("messageUpload", given, "message { id }")(ada)
    order = {"message": {"id": made["message"]["id"]}}
    return Call("messageSubmit", order, "submission { state } message { draft }")


@call
async def compose_request(ada: Client, _root: Client) -> Call:
    world = ada.world
    holder = await leases.ensure_registered(world)
    async with world.write_session() as session:
        session.add(ComposeListener(id=world.new_id(), user_id=ada.user.id, holder=holder))
    return Call("composeRequest", {"subject": "Hello"}, "delivered request { subject }")


@call
async def submission_cancel(ada: Client, root: Client) -> Call:
    send = await message_send(ada, root)
    later = Call(
        "messageSend", {**send.input, "sendTime": "2031-01-01T00:00:00Z"}, "submission { id }"
    )
    key = (await later(ada))["submission"]["id"]
    return Call("submissionCancel", {"ids": [key]}, "submissions { state }")


@call
async def undo(ada: Client, root: Client) -> Call:
    done = await (await message_delete(ada, root))(ada)
    return Call("undo", {"token": done["undo"]["token"]}, "restoredCount")


async def _message(ada: Client) -> str:
    return global_ids.encode("Message", (await receive(ada, "Pond news")).message_id)


async def _thread(ada: Client) -> str:
    await receive(ada, "Pond news")
    nodes = (await ada(THREADS))["viewer"]["user"]["messages"]["nodes"]
    return str(nodes[0]["thread"]["id"])


async def _filed(ada: Client, root: Client) -> None:
    done = await (await message_move(ada, root))(ada)
    assert done["errors"] == []
