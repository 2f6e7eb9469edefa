"""Sample calls of mutations of mailboxes, messages, threads and submissions."""

from dataclasses import replace

import httpx

from graph.app import create_app
from graph.types import global_ids
from mail.storage.blobs.object_stores import FolderStore
from mail.storage.blobs.tiered_store import TieredStore
from models.runtime import leases
from models.submission.compose_requests import ComposeListener
from models.users.roles import Role
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.sample_mutations.mutation_call import Call, call

THREADS_QUERY = "{ viewer { user { messages { nodes { thread { id } } } } } }"


@call
async def archive_restore(ada: GraphQLClient, root: GraphQLClient) -> Call:
    assert (await (await message_delete(ada, root))(ada))["errors"] == []
    input_fields = {"start": "2029-01-01T00:00:00Z", "end": "2031-01-01T00:00:00Z"}
    return Call("archiveRestore", input_fields, "task { kind state total }")


@call
async def archived_message_restore(ada: GraphQLClient, root: GraphQLClient) -> Call:
    delete = await message_delete(ada, root)
    assert (await delete(ada))["errors"] == []
    archived_message_id = global_ids.encode(
        "ArchivedMessage", global_ids.decode("Message", delete.input["select"]["ids"][0])
    )
    payload = "restored { mailbox { path } message { subject } }"
    return Call("archivedMessageRestore", {"ids": [archived_message_id]}, payload)


@call
async def mailbox_create(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call("mailboxCreate", {"paths": ["Clients/Eve"]}, "mailboxes { path }")


@call
async def mailbox_delete(ada: GraphQLClient, root: GraphQLClient) -> Call:
    await _move_message(ada, root)
    return Call("mailboxDelete", {"mailboxes": [{"path": "Clients/Eve"}]}, "deletedIds")


@call
async def mailbox_update(ada: GraphQLClient, root: GraphQLClient) -> Call:
    await (await mailbox_create(ada, root))(ada)
    patch = {"retention": "P30D", "specialUse": "ARCHIVE", "subscribed": False}
    input_fields = {"mailboxes": [{"path": "Clients"}], "set": patch}
    return Call("mailboxUpdate", input_fields, "mailboxes { path specialUse retention }")


@call
async def mailbox_subscribe(ada: GraphQLClient, root: GraphQLClient) -> Call:
    await (await mailbox_unsubscribe(ada, root))(ada)
    return Call("mailboxSubscribe", {"paths": ["Sent"]}, "mailboxes { path subscribed }")


@call
async def mailbox_unsubscribe(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call("mailboxUnsubscribe", {"paths": ["Sent"]}, "mailboxes { path subscribed }")


@call
async def mailbox_metadata_set(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"mailbox": {"path": "INBOX"}, "key": "/private/comment", "value": "x"}
    return Call("mailboxMetadataSet", input_fields, "entries { key value }")


@call
async def mailbox_metadata_unset(ada: GraphQLClient, root: GraphQLClient) -> Call:
    await (await mailbox_metadata_set(ada, root))(ada)
    input_fields = {"mailbox": {"path": "INBOX"}, "key": "/private/comment"}
    return Call("mailboxMetadataUnset", input_fields, "keys")


@call
async def mailbox_share_set(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    await make_client(ada.environment, ada.http, "zoe")
    input_fields = {"mailbox": {"path": "INBOX"}, "user": {"username": "zoe"}, "rights": ["READ"]}
    return Call("mailboxShareSet", input_fields, "mailboxes { path acl { rights } }")


@call
async def mailbox_state_set(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {
        "users": {"usernames": ["ada"]},
        "mailbox": {"path": "INBOX"},
        "minNextUid": 1000,
    }
    input_fields |= {"guid": "0123456789abcdef" * 2, "minHighestModseq": 1000}
    return Call("mailboxStateSet", input_fields, "mailboxes { guid uidNext modseq }", by_root=True)


@call
async def mailbox_repair(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"users": {"usernames": ["ada"]}, "mailboxMasks": ["*"]}
    payload = "repaired { findings fixed }"
    return Call("mailboxRepair", input_fields, payload, journaled=False, by_root=True)


@call
async def mailbox_rename(ada: GraphQLClient, root: GraphQLClient) -> Call:
    await _move_message(ada, root)
    input_fields = {"mailbox": {"path": "Clients"}, "newPath": "Old/Clients"}
    return Call("mailboxRename", input_fields, "mailboxes { path }")


@call
async def message_delete(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    message_id = await _receive_message(ada)
    input_fields = {"select": {"ids": [message_id]}}
    return Call("messageDelete", input_fields, "deletedCount undo { token }")


@call
async def message_move(ada: GraphQLClient, root: GraphQLClient) -> Call:
    message_id = await _receive_message(ada)
    await (await mailbox_create(ada, root))(ada)
    input_fields = {
        "select": {"ids": [message_id]},
        "to": {"path": "Clients/Eve"},
        "set": {"flagged": True},
    }
    payload = "movedCount moved { oldUid newUid message { subject } } undo { expiresAt }"
    return Call("messageMove", input_fields, payload)


@call
async def message_copy(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"select": {"ids": [await _receive_message(ada)]}, "to": {"specialUse": "SENT"}}
    return Call(
        "messageCopy", input_fields, "copiedCount copied { oldUid newUid message { subject } }"
    )


@call
async def message_deduplicate(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"select": {"ids": [await _receive_message(ada)]}, "to": {"path": "INBOX"}}
    assert (await Call("messageCopy", input_fields)(ada))["errors"] == []
    return Call("messageDeduplicate", {"select": {"all": True}}, "deletedCount undo { expiresAt }")


@call
async def message_send(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"to": [{"address": "carol@example.com"}], "subject": "Hello", "text": "Hi."}
    return Call("messageSend", input_fields, "submission { state } message { subject }")


@call
async def message_forward(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {
        "message": {"id": await _receive_message(ada)},
        "addresses": ["carol@example.net"],
    }
    return Call("messageForward", input_fields, "forwarded { seq type value }")


@call
async def message_tier_move(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    fast_store = ada.environment.object_store
    assert isinstance(fast_store, FolderStore)
    folder = fast_store.folder.parent
    environment = replace(
        ada.environment, object_store=TieredStore(fast_store, FolderStore(folder / "cold"))
    )
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=folder))
    http = httpx.AsyncClient(transport=transport, base_url="http://test")
    administrator = await make_client(environment, http, "boss", role=Role.ADMIN)
    input_fields = {
        "select": {"users": {"usernames": ["ada"]}, "ids": [await _receive_message(ada)]}
    }
    return Call("messageTierMove", input_fields, "movedCount", journaled=False, by=administrator)


@call
async def message_update(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    message_id = await _receive_message(ada)
    input_fields = {"select": {"ids": [message_id]}, "set": {"seen": True, "addFlags": ["work"]}}
    return Call("messageUpdate", input_fields, "updatedCount messages { flags } undo { token }")


@call
async def thread_update(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"ids": [await _receive_thread(ada)], "set": {"seen": True}, "muted": True}
    return Call("threadUpdate", input_fields, "threads { unseenCount muted } undo { expiresAt }")


@call
async def label_set(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"keyword": "work", "name": "Work", "color": "#1E90FF"}
    return Call("labelSet", input_fields, "labels { keyword name color total }")


@call
async def saved_search_set(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    input_fields = {"name": "Unread", "query": "is:unread"}
    return Call("savedSearchSet", input_fields, "savedSearches { name query total }")


@call
async def message_upload(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    file = {"content": "eA==", "filename": "a.txt"}
    draft_input = {"mailbox": {"specialUse": "DRAFTS"}, "draft": True, "attachments": [file]}
    payload = await Call("messageUpload", draft_input, "message { id }")(ada)
    replacement = {
        "replacePrevious": {"id": payload["message"]["id"]},
        "mailbox": {"path": "INBOX"},
    }
    input_fields = {**replacement, "subject": "Mine", "to": [{"address": "carol"}]}
    selection = "message { subject attachments { filename } } previousDeleted warnings { path }"
    return Call("messageUpload", input_fields, selection)


@call
async def message_submit(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    draft_input = {"mailbox": {"specialUse": "DRAFTS"}, "draft": True, "text": "Hi."}
    draft_input = {**draft_input, "to": [{"address": "carol@example.com"}]}
    payload = await Call("messageUpload", draft_input, "message { id }")(ada)
    input_fields = {"message": {"id": payload["message"]["id"]}}
    return Call("messageSubmit", input_fields, "submission { state } message { draft }")


@call
async def compose_request(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    environment = ada.environment
    holder = await leases.ensure_registered(environment)
    async with environment.write_session() as session:
        session.add(ComposeListener(id=environment.new_id(), user_id=ada.user.id, holder=holder))
    return Call("composeRequest", {"subject": "Hello"}, "delivered request { subject }")


@call
async def submission_cancel(ada: GraphQLClient, root: GraphQLClient) -> Call:
    send = await message_send(ada, root)
    send_later = Call(
        "messageSend", {**send.input, "sendTime": "2031-01-01T00:00:00Z"}, "submission { id }"
    )
    submission_id = (await send_later(ada))["submission"]["id"]
    return Call("submissionCancel", {"ids": [submission_id]}, "submissions { state }")


@call
async def undo(ada: GraphQLClient, root: GraphQLClient) -> Call:
    payload = await (await message_delete(ada, root))(ada)
    return Call("undo", {"token": payload["undo"]["token"]}, "restoredCount")


async def _receive_message(ada: GraphQLClient) -> str:
    return global_ids.encode("Message", (await deliver_to(ada, "Pond news")).message_id)


async def _receive_thread(ada: GraphQLClient) -> str:
    await deliver_to(ada, "Pond news")
    nodes = (await ada(THREADS_QUERY))["viewer"]["user"]["messages"]["nodes"]
    return str(nodes[0]["thread"]["id"])


async def _move_message(ada: GraphQLClient, root: GraphQLClient) -> None:
    payload = await (await message_move(ada, root))(ada)
    assert payload["errors"] == []
