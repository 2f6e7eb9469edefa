"""Calls by administrators that change accounts of others, with the objects that they need."""

from collections.abc import Awaitable, Callable
from typing import Any

from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to
from tests.support.sample_mutations import SAMPLE_CALLS, MutationCall, connector_mutations

PrepareCall = Callable[[GraphQLClient, GraphQLClient], Awaitable[MutationCall]]


async def delete_key_of_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    sample = await (SAMPLE_CALLS["apiKeyDelete"])(ada, root)
    return MutationCall(sample.name, sample.input, sample.payload, journaled=False, by_root=True)


async def create_key_for_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"name": "reports", "user": {"id": global_ids.encode("User", ada.user.id)}}
    return MutationCall(
        "apiKeyCreate", input_fields, "apiKey { name }", journaled=False, by_root=True
    )


def call_on_ada(mutation: str, /, **input_fields: Any) -> PrepareCall:
    """A call on the account ada."""

    async def prepare(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
        users = {"users": {"ids": [global_ids.encode("User", ada.user.id)]}}
        return MutationCall(mutation, {**users, **input_fields}, by_root=True)

    return prepare


def call_on_shared_entry(name: str, **input_fields: Any) -> PrepareCall:
    """A call on an entry that all users can read."""

    async def prepare(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
        entry = {"key": "motd", "shared": True}
        payload = await MutationCall("keyValueSet", {**entry, "value": "1"})(root)
        assert payload["errors"] == []
        return MutationCall(name, {**entry, **input_fields}, by_root=True)

    return prepare


async def create_connector_for_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    user = {"id": global_ids.encode("User", ada.user.id)}
    return MutationCall(
        "connectorCreate", {**connector_mutations.CONNECTOR_INPUT, "user": user}, by_root=True
    )


async def import_for_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    sample = await SAMPLE_CALLS["mailImport"](ada, root)
    users = {"ids": [global_ids.encode("User", ada.user.id)]}
    return MutationCall("mailImport", {**sample.input, "users": users}, by_root=True)


async def set_push_channel_of_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    users = {"usernames": [ada.user.username]}
    input_fields = {"users": users, "kind": "HTTP", "endpoint": "https://ntfy.example.net/ada"}
    return MutationCall("pushChannelSet", input_fields, by_root=True)


def call_on_object_of_ada(name: str) -> PrepareCall:
    """The sample call on an object of ada, by the platform key."""

    async def prepare(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
        sample = await SAMPLE_CALLS[name](ada, root)
        return MutationCall(sample.name, sample.input, sample.payload, by_root=True)

    return prepare


async def reset_password_of_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"user": {"id": global_ids.encode("User", ada.user.id)}}
    return MutationCall("userPasswordReset", input_fields, "password", by_root=True)


def call_on_account_of_ada(name: str, **input_fields: Any) -> PrepareCall:
    """A call on the account ada as `user`, by the platform key."""

    async def prepare(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
        user = {"id": global_ids.encode("User", ada.user.id)}
        return MutationCall(name, {"user": user, **input_fields}, by_root=True)

    return prepare


async def create_identity_for_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    user = {"id": global_ids.encode("User", ada.user.id)}
    input_fields = {"user": user, "address": ada.address, "name": "Ada"}
    return MutationCall("identityCreate", input_fields, by_root=True)


async def create_filter_for_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    return await _sample_call_for_ada("filterCreate", ada, root)


async def create_filters_for_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    user = {"id": global_ids.encode("User", ada.user.id)}
    new_filter = {"user": user, "name": "x", "query": {"subject": "x"}, "action": {"seen": True}}
    return MutationCall("filtersCreate", {"filters": [new_filter]}, by_root=True)


async def import_filters_for_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    return await _sample_call_for_ada("filterImport", ada, root)


async def _sample_call_for_ada(name: str, ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    sample = await SAMPLE_CALLS[name](ada, root)
    user = {"id": global_ids.encode("User", ada.user.id)}
    return MutationCall(sample.name, {**sample.input, "user": user}, by_root=True)


def call_on_mailbox_of_ada(name: str) -> PrepareCall:
    """A call on a mailbox of ada that exists."""

    async def prepare(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
        create = await call_on_ada("mailboxCreate", paths=["A"])(ada, root)
        assert (await create(root))["errors"] == []
        return await call_on_ada(name, mailboxes=[{"path": "A"}])(ada, root)

    return prepare


async def update_mailbox_of_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "users": {"ids": [global_ids.encode("User", ada.user.id)]},
        "mailboxes": [{"path": "Sent"}],
    }
    return MutationCall(
        "mailboxUpdate", {**input_fields, "set": {"subscribed": False}}, by_root=True
    )


def call_on_messages_of_ada(name: str, **input_fields: Any) -> PrepareCall:
    """A call on all messages of ada."""

    async def prepare(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
        await deliver_to(ada)
        await deliver_to(ada, sender="dave@example.com")
        message_selection = {
            "users": {"ids": [global_ids.encode("User", ada.user.id)]},
            "all": True,
        }
        return MutationCall(name, {"select": message_selection, **input_fields}, by_root=True)

    return prepare


async def delete_autoreply_of_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    autoreply = {"set": {"enabled": True, "text": "I am away."}}
    set_autoreply = await call_on_ada("autoreplySet", **autoreply)(ada, root)
    assert (await set_autoreply(root))["errors"] == []
    return await call_on_ada("autoreplyDelete")(ada, root)


async def _delete_ada(ada: GraphQLClient, root: GraphQLClient) -> None:
    delete = await call_on_ada("userDelete", purgeAt="2031-01-01T00:00:00Z")(ada, root)
    assert (await delete(root))["errors"] == []


async def restore_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _delete_ada(ada, root)
    input_fields = {"user": {"id": global_ids.encode("User", ada.user.id)}}
    return MutationCall("userRestore", input_fields, by_root=True)


async def purge_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _delete_ada(ada, root)
    return await call_on_ada("userPurge")(ada, root)


def call_on_script_of_ada(mutation: str, /, **input_fields: Any) -> PrepareCall:
    """A call on an active Sieve script of ada."""

    async def prepare(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
        put_script = await call_on_ada("sieveScriptSet", name="a", content="keep;", activate=True)(
            ada, root
        )
        assert (await put_script(root))["errors"] == []
        if mutation == "sieveScriptActivate":
            deactivate = await call_on_ada("sieveScriptDeactivate")(ada, root)
            assert (await deactivate(root))["errors"] == []
        return await call_on_ada(mutation, **input_fields)(ada, root)

    return prepare
