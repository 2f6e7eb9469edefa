"""The mutations that write the admin log, and what their entries contain.

A new mutation for administrators is added here. A mutation of a lower role is added if it can also
change another account.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to
from tests.support.sample_mutations import SAMPLE_CALLS, MutationCall, connector_mutations

PrepareCall = Callable[[GraphQLClient, GraphQLClient], Awaitable[MutationCall]]


@dataclass(frozen=True)
class AuditLogExpectation:
    """The contents of an entry: the type of its target, and the names in `before` and `after`."""

    target_type: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    prepare: PrepareCall | None = None  # if the sample call is on the caller's own objects


async def _delete_key_of_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    sample = await (SAMPLE_CALLS["apiKeyDelete"])(ada, root)
    return MutationCall(sample.name, sample.input, sample.payload, journaled=False, by_root=True)


async def _create_key_for_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"name": "reports", "user": {"id": global_ids.encode("User", ada.user.id)}}
    return MutationCall(
        "apiKeyCreate", input_fields, "apiKey { name }", journaled=False, by_root=True
    )


def _call_on_ada(mutation: str, /, **input_fields: Any) -> PrepareCall:
    """A call on the account ada."""

    async def prepare(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
        users = {"users": {"ids": [global_ids.encode("User", ada.user.id)]}}
        return MutationCall(mutation, {**users, **input_fields}, by_root=True)

    return prepare


def _call_on_shared_entry(name: str, **input_fields: Any) -> PrepareCall:
    """A call on an entry that all users can read."""

    async def prepare(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
        entry = {"key": "motd", "shared": True}
        payload = await MutationCall("keyValueSet", {**entry, "value": "1"})(root)
        assert payload["errors"] == []
        return MutationCall(name, {**entry, **input_fields}, by_root=True)

    return prepare


async def _create_connector_for_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    user = {"id": global_ids.encode("User", ada.user.id)}
    return MutationCall(
        "connectorCreate", {**connector_mutations.CONNECTOR_INPUT, "user": user}, by_root=True
    )


async def _import_for_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    sample = await SAMPLE_CALLS["mailImport"](ada, root)
    users = {"ids": [global_ids.encode("User", ada.user.id)]}
    return MutationCall("mailImport", {**sample.input, "users": users}, by_root=True)


async def _set_push_channel_of_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    users = {"usernames": [ada.user.username]}
    input_fields = {"users": users, "kind": "HTTP", "endpoint": "https://ntfy.example.net/ada"}
    return MutationCall("pushChannelSet", input_fields, by_root=True)


def _call_on_object_of_ada(name: str) -> PrepareCall:
    """The sample call on an object of ada, by the platform key."""

    async def prepare(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
        sample = await SAMPLE_CALLS[name](ada, root)
        return MutationCall(sample.name, sample.input, sample.payload, by_root=True)

    return prepare


async def _reset_password_of_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"user": {"id": global_ids.encode("User", ada.user.id)}}
    return MutationCall("userPasswordReset", input_fields, "password", by_root=True)


MBOX = "From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"


def _call_on_account_of_ada(name: str, **input_fields: Any) -> PrepareCall:
    """A call on the account ada as `user`, by the platform key."""

    async def prepare(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
        user = {"id": global_ids.encode("User", ada.user.id)}
        return MutationCall(name, {"user": user, **input_fields}, by_root=True)

    return prepare


async def _create_identity_for_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    user = {"id": global_ids.encode("User", ada.user.id)}
    input_fields = {"user": user, "address": ada.address, "name": "Ada"}
    return MutationCall("identityCreate", input_fields, by_root=True)


async def _create_filter_for_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    return await _sample_call_for_ada("filterCreate", ada, root)


async def _import_filters_for_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    return await _sample_call_for_ada("filterImport", ada, root)


async def _sample_call_for_ada(name: str, ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    sample = await SAMPLE_CALLS[name](ada, root)
    user = {"id": global_ids.encode("User", ada.user.id)}
    return MutationCall(sample.name, {**sample.input, "user": user}, by_root=True)


def _call_on_mailbox_of_ada(name: str) -> PrepareCall:
    """A call on a mailbox of ada that exists."""

    async def prepare(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
        create = await _call_on_ada("mailboxCreate", paths=["A"])(ada, root)
        assert (await create(root))["errors"] == []
        return await _call_on_ada(name, mailboxes=[{"path": "A"}])(ada, root)

    return prepare


async def _update_mailbox_of_ada(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "user": {"id": global_ids.encode("User", ada.user.id)},
        "mailboxes": [{"path": "Sent"}],
    }
    return MutationCall(
        "mailboxUpdate", {**input_fields, "set": {"subscribed": False}}, by_root=True
    )


def _call_on_messages_of_ada(name: str, **input_fields: Any) -> PrepareCall:
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


async def _delete_autoreply_of_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    autoreply = {"set": {"enabled": True, "text": "I am away."}}
    set_autoreply = await _call_on_ada("autoreplySet", **autoreply)(ada, root)
    assert (await set_autoreply(root))["errors"] == []
    return await _call_on_ada("autoreplyDelete")(ada, root)


async def _delete_ada(ada: GraphQLClient, root: GraphQLClient) -> None:
    delete = await _call_on_ada("userDelete", purgeAt="2031-01-01T00:00:00Z")(ada, root)
    assert (await delete(root))["errors"] == []


async def _restore_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _delete_ada(ada, root)
    input_fields = {"user": {"id": global_ids.encode("User", ada.user.id)}}
    return MutationCall("userRestore", input_fields, by_root=True)


async def _purge_ada(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _delete_ada(ada, root)
    return await _call_on_ada("userPurge")(ada, root)


def _call_on_script_of_ada(mutation: str, /, **input_fields: Any) -> PrepareCall:
    """A call on an active Sieve script of ada."""

    async def prepare(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
        put_script = await _call_on_ada("sieveScriptSet", name="a", content="keep;", activate=True)(
            ada, root
        )
        assert (await put_script(root))["errors"] == []
        if mutation == "sieveScriptActivate":
            deactivate = await _call_on_ada("sieveScriptDeactivate")(ada, root)
            assert (await deactivate(root))["errors"] == []
        return await _call_on_ada(mutation, **input_fields)(ada, root)

    return prepare


AUDIT_LOG_EXPECTATIONS: dict[str, AuditLogExpectation] = {
    "addressCreate": AuditLogExpectation("Address", after=("address", "user")),
    "temporaryAddressCreate": AuditLogExpectation(
        "Address",
        after=("address", "user"),
        prepare=_call_on_account_of_ada("temporaryAddressCreate"),
    ),
    "addressDelete": AuditLogExpectation("Address", before=("address",)),
    "addressUpdate": AuditLogExpectation(
        "Address", before=("active", "forwardTo"), after=("active", "forwardTo")
    ),
    "userExport": AuditLogExpectation("User", prepare=_call_on_account_of_ada("userExport")),
    "userImport": AuditLogExpectation(
        "User", prepare=_call_on_account_of_ada("userImport", archive={"text": MBOX})
    ),
    "userImpersonate": AuditLogExpectation("User", after=("until",)),
    "legalHoldCreate": AuditLogExpectation("LegalHold", after=("user", "expiresAt")),
    "legalHoldEnd": AuditLogExpectation("LegalHold", before=("user",)),
    "autoreplyDelete": AuditLogExpectation(
        "User", before=("enabled",), prepare=_delete_autoreply_of_ada
    ),
    "autoreplySet": AuditLogExpectation(
        "User",
        after=("enabled", "text"),
        prepare=_call_on_ada("autoreplySet", set={"enabled": True, "text": "I am away."}),
    ),
    "bccRuleCreate": AuditLogExpectation(
        "BccRule", after=("match", "bccTo", "direction", "active")
    ),
    "bccRuleDelete": AuditLogExpectation(
        "BccRule", before=("match", "bccTo", "direction", "active")
    ),
    "bccRuleUpdate": AuditLogExpectation("BccRule", before=("bccTo",), after=("bccTo",)),
    "certificateDelete": AuditLogExpectation(
        "Certificate", before=("serverName", "fingerprintSha256")
    ),
    "certificateRenew": AuditLogExpectation("Certificate", after=("serverName",)),
    "certificateSet": AuditLogExpectation(
        "Certificate", after=("serverName", "acme", "fingerprintSha256")
    ),
    "externalTwoFactorDisable": AuditLogExpectation(
        "User", before=("twoFactorMethods",), after=("twoFactorMethods",)
    ),
    "externalTwoFactorEnable": AuditLogExpectation(
        "User", before=("twoFactorMethods",), after=("twoFactorMethods",)
    ),
    "dkimKeyActivate": AuditLogExpectation("DkimKey", before=("state",), after=("state",)),
    "dkimKeyCopy": AuditLogExpectation("DkimKey", after=("domain", "selector", "fingerprint")),
    "dkimKeyDelete": AuditLogExpectation("DkimKey", before=("domain", "selector", "fingerprint")),
    "dkimKeyRotate": AuditLogExpectation("DkimKey", after=("domain", "selector", "state")),
    "dkimKeySet": AuditLogExpectation("DkimKey", after=("domain", "selector", "algorithm")),
    "domainAliasCreate": AuditLogExpectation("DomainAlias"),
    "domainAliasDelete": AuditLogExpectation("DomainAlias"),
    "domainCreate": AuditLogExpectation("Domain"),
    "domainDelete": AuditLogExpectation("Domain"),
    "domainRename": AuditLogExpectation("Domain"),
    "domainUpdate": AuditLogExpectation("Domain", before=("description",), after=("description",)),
    "filterCreate": AuditLogExpectation(
        "Filter", after=("name", "position", "active"), prepare=_create_filter_for_ada
    ),
    "filterDelete": AuditLogExpectation(
        "Filter", before=("name",), prepare=_call_on_object_of_ada("filterDelete")
    ),
    "filterImport": AuditLogExpectation(
        "Filter", after=("name", "position", "active"), prepare=_import_filters_for_ada
    ),
    "filterUpdate": AuditLogExpectation(
        "Filter", before=("name",), after=("name",), prepare=_call_on_object_of_ada("filterUpdate")
    ),
    "identityCreate": AuditLogExpectation(
        "Identity",
        after=("address", "name"),
        prepare=_create_identity_for_ada,
    ),
    "identityDelete": AuditLogExpectation(
        "Identity", before=("address", "name"), prepare=_call_on_object_of_ada("identityDelete")
    ),
    "identityUpdate": AuditLogExpectation(
        "Identity",
        before=("address", "name"),
        after=("address", "name"),
        prepare=_call_on_object_of_ada("identityUpdate"),
    ),
    "mailboxCreate": AuditLogExpectation(
        "User", prepare=_call_on_ada("mailboxCreate", paths=["A"])
    ),
    "mailboxDelete": AuditLogExpectation("User", prepare=_call_on_mailbox_of_ada("mailboxDelete")),
    "mailboxAnnotationSet": AuditLogExpectation(
        "User",
        prepare=_call_on_ada(
            "mailboxAnnotationSet", mailbox={"path": "INBOX"}, key="/private/comment", value="x"
        ),
    ),
    "mailboxAnnotationDelete": AuditLogExpectation(
        "User",
        prepare=_call_on_ada(
            "mailboxAnnotationDelete", mailbox={"path": "INBOX"}, key="/private/comment"
        ),
    ),
    "mailboxRename": AuditLogExpectation(
        "User", prepare=_call_on_ada("mailboxRename", mailbox={"path": "Sent"}, newPath="A")
    ),
    "mailboxStateSet": AuditLogExpectation("User"),
    "mailboxSubscribe": AuditLogExpectation(
        "User", prepare=_call_on_ada("mailboxSubscribe", mailboxes=[{"path": "A"}])
    ),
    "mailboxUnsubscribe": AuditLogExpectation(
        "User", prepare=_call_on_ada("mailboxUnsubscribe", mailboxes=[{"path": "Sent"}])
    ),
    "mailboxUpdate": AuditLogExpectation("User", prepare=_update_mailbox_of_ada),
    "messageCopy": AuditLogExpectation(
        "User",
        after=("messages",),
        prepare=_call_on_messages_of_ada("messageCopy", to={"path": "Sent"}),
    ),
    "messageDeduplicate": AuditLogExpectation(
        "User", after=("messages",), prepare=_call_on_messages_of_ada("messageDeduplicate")
    ),
    "messageDelete": AuditLogExpectation(
        "User", after=("messages",), prepare=_call_on_messages_of_ada("messageDelete")
    ),
    "messageMove": AuditLogExpectation(
        "User",
        after=("messages",),
        prepare=_call_on_messages_of_ada("messageMove", to={"path": "Sent"}),
    ),
    "messageTierMove": AuditLogExpectation("User", after=("messages",)),
    "draftSave": AuditLogExpectation(
        "User", prepare=_call_on_account_of_ada("draftSave", set={"subject": "x"})
    ),
    "messageImport": AuditLogExpectation(
        "User",
        prepare=_call_on_ada("messageImport", mailbox={"path": "INBOX"}, raw="Subject: x\n\nx\n"),
    ),
    "messageUpdate": AuditLogExpectation(
        "User",
        after=("messages",),
        prepare=_call_on_messages_of_ada("messageUpdate", set={"seen": True}),
    ),
    "connectorRunCancel": AuditLogExpectation(
        "ConnectorRun", before=("state",), prepare=_call_on_object_of_ada("connectorRunCancel")
    ),
    "connectorCreate": AuditLogExpectation(
        "Connector", after=("name", "host"), prepare=_create_connector_for_ada
    ),
    "connectorDelete": AuditLogExpectation(
        "Connector", before=("name", "host"), prepare=_call_on_object_of_ada("connectorDelete")
    ),
    "connectorStart": AuditLogExpectation(
        "Connector", after=("name", "dryRun"), prepare=_call_on_object_of_ada("connectorStart")
    ),
    "connectorUpdate": AuditLogExpectation(
        "Connector",
        before=("name", "host", "active"),
        after=("name", "host", "active"),
        prepare=_call_on_object_of_ada("connectorUpdate"),
    ),
    "mailImport": AuditLogExpectation("User", prepare=_import_for_ada),
    "keyValueDelete": AuditLogExpectation(
        "KeyValueEntry",
        before=("store", "key", "entries"),
        prepare=_call_on_shared_entry("keyValueDelete"),
    ),
    "keyValueIncrement": AuditLogExpectation(
        "KeyValueEntry",
        after=("store", "key"),
        prepare=_call_on_shared_entry("keyValueIncrement", delta=1),
    ),
    "keyValueSet": AuditLogExpectation(
        "KeyValueEntry",
        after=("store", "key"),
        prepare=_call_on_shared_entry("keyValueSet", value="correct horse"),
    ),
    "userPasswordReset": AuditLogExpectation("User", prepare=_reset_password_of_ada),
    "userPreferencesReset": AuditLogExpectation(
        "User", prepare=_call_on_ada("userPreferencesReset")
    ),
    "totpImport": AuditLogExpectation("User", after=("twoFactorMethods",)),
    "userDelete": AuditLogExpectation(
        "User", before=("username",), prepare=_call_on_ada("userDelete")
    ),
    "userPermissionsSet": AuditLogExpectation(
        "User", prepare=_call_on_ada("userPermissionsSet", permissions=[])
    ),
    "userPurge": AuditLogExpectation("User", before=("username",), prepare=_purge_ada),
    "userRestore": AuditLogExpectation("User", prepare=_restore_ada),
    "userRoleSet": AuditLogExpectation(
        "User", before=("role",), after=("role",), prepare=_call_on_ada("userRoleSet", role="ADMIN")
    ),
    "apiKeyCreate": AuditLogExpectation(
        "ApiKey", after=("name", "role"), prepare=_create_key_for_ada
    ),
    "apiKeyDelete": AuditLogExpectation(
        "ApiKey", before=("name", "role"), prepare=_delete_key_of_ada
    ),
    "senderRuleCreate": AuditLogExpectation(
        "SenderRule",
        after=("pattern", "action", "place"),
        prepare=_call_on_object_of_ada("senderRuleCreate"),
    ),
    "senderRuleDelete": AuditLogExpectation(
        "SenderRule",
        before=("pattern", "action", "place"),
        prepare=_call_on_object_of_ada("senderRuleDelete"),
    ),
    "quarantineDelete": AuditLogExpectation(
        "QuarantineItem",
        before=("sender", "recipient"),
        prepare=_call_on_object_of_ada("quarantineDelete"),
    ),
    "quarantineNotificationSet": AuditLogExpectation(
        "User",
        before=("quarantineNotification",),
        after=("quarantineNotification",),
        prepare=_call_on_ada("quarantineNotificationSet", frequency="WEEKLY"),
    ),
    "quarantineRelease": AuditLogExpectation(
        "QuarantineItem",
        before=("sender", "recipient"),
        prepare=_call_on_object_of_ada("quarantineRelease"),
    ),
    "queueDelete": AuditLogExpectation(
        "QueueEntry", before=("queueId", "sender"), prepare=_call_on_object_of_ada("queueDelete")
    ),
    "queueFlush": AuditLogExpectation("QueueEntry", before=("queueId", "sender")),
    "queueHold": AuditLogExpectation("QueueEntry", before=("queueId", "sender"), after=("held",)),
    "queueRelease": AuditLogExpectation(
        "QueueEntry", before=("queueId", "sender"), after=("held",)
    ),
    "rateLimitReset": AuditLogExpectation("User", before=("rateLimit",), after=("rateLimit",)),
    "rateLimitSet": AuditLogExpectation("User", before=("rateLimit",), after=("rateLimit",)),
    "recipientRewriteCreate": AuditLogExpectation(
        "RecipientRewrite", after=("from", "to", "active")
    ),
    "recipientRewriteDelete": AuditLogExpectation(
        "RecipientRewrite", before=("from", "to", "active")
    ),
    "recipientRewriteUpdate": AuditLogExpectation(
        "RecipientRewrite", before=("to",), after=("to",)
    ),
    "sieveScriptActivate": AuditLogExpectation(
        "SieveScript",
        before=("name", "active"),
        after=("name", "active"),
        prepare=_call_on_script_of_ada("sieveScriptActivate", sieveScript={"name": "a"}),
    ),
    "sieveScriptDeactivate": AuditLogExpectation(
        "SieveScript", after=("active",), prepare=_call_on_script_of_ada("sieveScriptDeactivate")
    ),
    "sieveScriptDelete": AuditLogExpectation(
        "SieveScript",
        before=("name", "size"),
        prepare=_call_on_script_of_ada(
            "sieveScriptDelete", sieveScripts=[{"name": "a"}], ignoreActive=True
        ),
    ),
    "sieveScriptSet": AuditLogExpectation(
        "SieveScript",
        after=("name", "size"),
        prepare=_call_on_script_of_ada("sieveScriptSet", name="b", content="discard;"),
    ),
    "sieveScriptRename": AuditLogExpectation(
        "SieveScript",
        before=("name",),
        after=("name",),
        prepare=_call_on_script_of_ada("sieveScriptRename", sieveScript={"name": "a"}, newName="b"),
    ),
    "forwardingHostCreate": AuditLogExpectation(
        "ForwardingHost", after=("host", "source", "filterSpam")
    ),
    "forwardingHostDelete": AuditLogExpectation(
        "ForwardingHost", before=("host", "source", "filterSpam")
    ),
    "relayHostCreate": AuditLogExpectation(
        "RelayHost", after=("host", "port", "username", "tls", "active")
    ),
    "relayHostDelete": AuditLogExpectation(
        "RelayHost", before=("host", "port", "username", "tls", "active")
    ),
    "relayHostUpdate": AuditLogExpectation("RelayHost", before=("active",), after=("active",)),
    "transportCreate": AuditLogExpectation("Transport", after=("destination", "nextHop", "active")),
    "transportDelete": AuditLogExpectation(
        "Transport", before=("destination", "nextHop", "active")
    ),
    "transportUpdate": AuditLogExpectation("Transport", before=("nextHop",), after=("nextHop",)),
    "tlsPolicyCreate": AuditLogExpectation(
        "TlsPolicy", after=("destination", "level", "parameters")
    ),
    "tlsPolicyDelete": AuditLogExpectation(
        "TlsPolicy", before=("destination", "level", "parameters")
    ),
    "tlsPolicyUpdate": AuditLogExpectation(
        "TlsPolicy", before=("level", "parameters"), after=("level", "parameters")
    ),
    "settingDelete": AuditLogExpectation("Setting", before=("submission.maxRecipients",)),
    "settingSet": AuditLogExpectation("Setting", after=("submission.maxRecipients",)),
    "userUsageReset": AuditLogExpectation("User", before=("limits",), after=("limits",)),
    "userCreate": AuditLogExpectation("User", after=("username", "role")),
    "usersCreate": AuditLogExpectation("User", after=("username", "role")),
    "usersCreateFromFile": AuditLogExpectation("Task", after=("file",)),
    "pushChannelDelete": AuditLogExpectation(
        "PushChannel", before=("kind",), prepare=_call_on_object_of_ada("pushChannelDelete")
    ),
    "pushChannelSet": AuditLogExpectation(
        "PushChannel", after=("kind", "active"), prepare=_set_push_channel_of_ada
    ),
    "pushChannelTest": AuditLogExpectation(
        "PushChannel", before=("kind",), prepare=_call_on_object_of_ada("pushChannelTest")
    ),
    "webhookCreate": AuditLogExpectation("Webhook", after=("types", "url")),
    "webhookDelete": AuditLogExpectation("Webhook", before=("types", "url")),
    "webhookReplay": AuditLogExpectation("Webhook", after=("events",)),
    "webhookSecretRotate": AuditLogExpectation("Webhook"),
    "webhookTest": AuditLogExpectation("Webhook"),
    "webhookUpdate": AuditLogExpectation("Webhook", before=("active",), after=("active",)),
}
# mutations for administrators that change no object of others, with the reason
UNLOGGED_MUTATIONS: dict[str, str] = {
    "authCacheFlush": "it only empties a cache",
    "mailboxRepair": "it only corrects computed columns",
    "quotaRecalculate": "it only corrects counters",
    "routeTest": "it changes and sends nothing",
    "searchIndexBuild": "it only indexes earlier what is indexed anyway",
    "searchIndexOptimize": "searches find the same messages as before",
    "searchIndexRebuild": "it only computes the index again",
}
