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
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

THREADS_QUERY = "{ viewer { user { messages { nodes { thread { id } } } } } }"


@register_call
async def deleted_message_restore(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    delete = await message_delete(ada, root)
    assert (await delete(ada))["errors"] == []
    deleted_message_id = global_ids.encode(
        "DeletedMessage", global_ids.decode("Message", delete.input["select"]["ids"][0])
    )
    payload = "restored { mailbox { path } message { subject } } task { kind state totalCount }"
    return MutationCall("deletedMessageRestore", {"select": {"ids": [deleted_message_id]}}, payload)


@register_call
async def mailbox_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("mailboxCreate", {"paths": ["Clients/Eve"]}, "mailboxes { path }")


@register_call
async def mailbox_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _move_message(ada, root)
    return MutationCall("mailboxDelete", {"mailboxes": [{"path": "Clients/Eve"}]}, "deletedIds")


@register_call
async def mailbox_update(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await (await mailbox_create(ada, root))(ada)
    patch = {"retention": "P30D", "specialUse": "ARCHIVE", "subscribed": False}
    input_fields = {"mailboxes": [{"path": "Clients"}], "set": patch}
    return MutationCall("mailboxUpdate", input_fields, "mailboxes { path specialUse retention }")


@register_call
async def mailbox_subscribe(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await (await mailbox_unsubscribe(ada, root))(ada)
    return MutationCall(
        "mailboxSubscribe", {"mailboxes": [{"path": "Sent"}]}, "mailboxes { path subscribed }"
    )


@register_call
async def mailbox_unsubscribe(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "mailboxUnsubscribe", {"mailboxes": [{"path": "Sent"}]}, "mailboxes { path subscribed }"
    )


@register_call
async def mailbox_annotation_set(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"mailbox": {"path": "INBOX"}, "key": "/private/comment", "value": "x"}
    return MutationCall("mailboxAnnotationSet", input_fields, "annotations { key value }")


@register_call
async def mailbox_annotation_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await (await mailbox_annotation_set(ada, root))(ada)
    input_fields = {"mailbox": {"path": "INBOX"}, "key": "/private/comment"}
    return MutationCall("mailboxAnnotationDelete", input_fields, "keys")


@register_call
async def mailbox_share_set(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await make_client(ada.environment, ada.http, "zoe")
    input_fields = {"mailbox": {"path": "INBOX"}, "user": {"username": "zoe"}, "rights": ["READ"]}
    return MutationCall("mailboxShareSet", input_fields, "mailboxes { path shares { rights } }")


@register_call
async def mailbox_state_set(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "users": {"usernames": ["ada"]},
        "mailbox": {"path": "INBOX"},
        "minNextUid": 1000,
    }
    input_fields |= {"objectId": "0123456789abcdef" * 2, "minHighestModseq": 1000}
    return MutationCall(
        "mailboxStateSet", input_fields, "mailboxes { objectId uidNext modseq }", by_root=True
    )


@register_call
async def mailbox_repair(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"users": {"usernames": ["ada"]}, "mailboxPatterns": ["*"]}
    payload = "repairResults { findings findingCount fixed }"
    return MutationCall("mailboxRepair", input_fields, payload, journaled=False, by_root=True)


@register_call
async def mailbox_rename(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _move_message(ada, root)
    input_fields = {"mailbox": {"path": "Clients"}, "newPath": "Old/Clients"}
    return MutationCall("mailboxRename", input_fields, "mailboxes { path }")


@register_call
async def message_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    message_id = await _receive_message(ada)
    input_fields = {"select": {"ids": [message_id]}}
    return MutationCall("messageDelete", input_fields, "deletedCount undo { token }")


@register_call
async def message_move(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    message_id = await _receive_message(ada)
    await (await mailbox_create(ada, root))(ada)
    input_fields = {
        "select": {"ids": [message_id]},
        "to": {"path": "Clients/Eve"},
        "set": {"flagged": True},
    }
    payload = "movedCount moved { oldUid newUid message { subject } } undo { expiresAt }"
    return MutationCall("messageMove", input_fields, payload)


@register_call
async def message_copy(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"select": {"ids": [await _receive_message(ada)]}, "to": {"specialUse": "SENT"}}
    return MutationCall(
        "messageCopy", input_fields, "copiedCount copied { oldUid newUid message { subject } }"
    )


@register_call
async def message_deduplicate(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"select": {"ids": [await _receive_message(ada)]}, "to": {"path": "INBOX"}}
    assert (await MutationCall("messageCopy", input_fields)(ada))["errors"] == []
    return MutationCall(
        "messageDeduplicate", {"select": {"all": True}}, "deletedCount undo { expiresAt }"
    )


@register_call
async def message_send(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"to": [{"address": "carol@example.com"}], "subject": "Hello", "text": "Hi."}
    return MutationCall("messageSend", input_fields, "submissions { state } messages { subject }")


@register_call
async def message_redirect(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "message": {"id": await _receive_message(ada)},
        "to": ["carol@example.net"],
    }
    return MutationCall("messageRedirect", input_fields, "forwardTargets { number type value }")


@register_call
async def message_tier_move(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
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
    return MutationCall(
        "messageTierMove", input_fields, "movedCount", journaled=False, other_caller=administrator
    )


@register_call
async def message_update(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    message_id = await _receive_message(ada)
    input_fields = {"select": {"ids": [message_id]}, "set": {"seen": True, "addFlags": ["work"]}}
    return MutationCall(
        "messageUpdate", input_fields, "updatedCount messages { imap { flags } } undo { token }"
    )


@register_call
async def thread_update(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "threads": [{"id": await _receive_thread(ada)}],
        "set": {"seen": True, "muted": True},
    }
    return MutationCall(
        "threadUpdate", input_fields, "threads { unseenCount muted } undo { expiresAt }"
    )


@register_call
async def label_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"keyword": "work", "name": "Work", "color": "#1E90FF"}
    return MutationCall("labelCreate", input_fields, "label { keyword name color messageCount }")


async def _create_label(ada: GraphQLClient) -> None:
    await ada('mutation { labelCreate(input: {keyword: "home"}) { errors { code } } }')


@register_call
async def label_update(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await _create_label(ada)
    input_fields = {"labels": [{"keyword": "home"}], "set": {"name": "Home"}}
    return MutationCall("labelUpdate", input_fields, "labels { keyword name }")


@register_call
async def label_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await _create_label(ada)
    return MutationCall("labelDelete", {"labels": [{"keyword": "home"}]}, "deletedIds")


@register_call
async def saved_search_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"name": "Unread", "query": "is:unread"}
    return MutationCall(
        "savedSearchCreate", input_fields, "savedSearch { name query messageCount }"
    )


async def _create_saved_search(ada: GraphQLClient) -> None:
    await ada(
        'mutation { savedSearchCreate(input: {name: "Old", query: "x"}) { errors { code } } }'
    )


@register_call
async def saved_search_update(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await _create_saved_search(ada)
    input_fields = {"savedSearches": [{"name": "Old"}], "set": {"query": "is:flagged"}}
    return MutationCall("savedSearchUpdate", input_fields, "savedSearches { name query }")


@register_call
async def saved_search_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await _create_saved_search(ada)
    return MutationCall("savedSearchDelete", {"savedSearches": [{"name": "Old"}]}, "deletedIds")


@register_call
async def message_import(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"mailbox": {"path": "INBOX"}, "raw": "Subject: x\n\nx\n", "keywords": ["new"]}
    return MutationCall("messageImport", input_fields, "messages { subject imap { flags } }")


@register_call
async def draft_save(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    file = {"content": "eA==", "filename": "a.txt"}
    payload = await MutationCall(
        "draftSave", {"set": {"addAttachments": [file]}}, "message { id }"
    )(ada)
    patch = {"subject": "Mine", "to": [{"address": "carol"}]}
    input_fields = {"draft": {"id": payload["message"]["id"]}, "set": patch}
    selection = "message { subject attachments { filename } } warnings { path }"
    return MutationCall("draftSave", input_fields, selection)


@register_call
async def draft_send(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    draft_input = {"set": {"text": "Hi.", "to": [{"address": "carol@example.com"}]}}
    payload = await MutationCall("draftSave", draft_input, "message { id }")(ada)
    input_fields = {"message": {"id": payload["message"]["id"]}}
    return MutationCall("draftSend", input_fields, "submissions { state } messages { draft }")


@register_call
async def compose_request_create(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    environment = ada.environment
    holder = await leases.ensure_process_registered(environment)
    async with environment.write_session() as session:
        session.add(ComposeListener(id=environment.new_id(), user_id=ada.user.id, holder=holder))
    return MutationCall(
        "composeRequestCreate", {"subject": "Hello"}, "deliveredCount composeRequest { subject }"
    )


@register_call
async def submission_cancel(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    send = await message_send(ada, root)
    send_later = MutationCall(
        "messageSend", {**send.input, "sendAt": "2031-01-01T00:00:00Z"}, "submissions { id }"
    )
    submission_id = (await send_later(ada))["submissions"][0]["id"]
    return MutationCall(
        "submissionCancel", {"submissions": [{"id": submission_id}]}, "submissions { state }"
    )


@register_call
async def undo(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    payload = await (await message_delete(ada, root))(ada)
    return MutationCall(
        "undo", {"token": payload["undo"]["token"]}, "restoredCount messages { id }"
    )


async def _receive_message(ada: GraphQLClient) -> str:
    return global_ids.encode("Message", (await deliver_to(ada, "Pond news")).message_id)


async def _receive_thread(ada: GraphQLClient) -> str:
    await deliver_to(ada, "Pond news")
    nodes = (await ada(THREADS_QUERY))["viewer"]["user"]["messages"]["nodes"]
    return str(nodes[0]["thread"]["id"])


async def _move_message(ada: GraphQLClient, root: GraphQLClient) -> None:
    payload = await (await message_move(ada, root))(ada)
    assert payload["errors"] == []
