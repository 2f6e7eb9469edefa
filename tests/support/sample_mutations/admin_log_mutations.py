"""The mutations that write the administrative log, and what they say there.

Each must have its call in tests/calls/. Whoever adds a mutation for administrators adds it
here; one of a lower role stands here where it may also be done to others.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from graph.types import global_ids
from tests.conftest import Client, receive
from tests.support.sample_mutations import CALLS, Call, connector_mutations

Prepare = Callable[[Client, Client], Awaitable[Call]]


@dataclass(frozen=True)
class Logged:
    """What an entry says: the type of its target, and names it has before and after."""

    kind: str
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    prepare: Prepare | None = None  # where the usual call is one of the viewer's own things


async def _others_key(ada: Client, root: Client) -> Call:
    made = await (CALLS["apiKeyDelete"])(ada, root)
    return Call(made.name, made.input, made.payload, journaled=False, by_root=True)


async def _key_for_ada(ada: Client, _root: Client) -> Call:
    given = {"name": "reports", "user": {"id": global_ids.encode("User", ada.user.id)}}
    return Call("apiKeyCreate", given, "apiKey { name }", journaled=False, by_root=True)


def _named(mutation: str, /, **given: Any) -> Prepare:
    """A call of what is done to ada."""

    async def prepare(ada: Client, _root: Client) -> Call:
        users = {"users": {"ids": [global_ids.encode("User", ada.user.id)]}}
        return Call(mutation, {**users, **given}, by_root=True)

    return prepare


def _shared(name: str, **given: Any) -> Prepare:
    """A call about an entry that all may read."""

    async def prepare(_ada: Client, root: Client) -> Call:
        entry = {"key": "motd", "shared": True}
        made = await Call("keyValueSet", {**entry, "value": "1"})(root)
        assert made["errors"] == []
        return Call(name, {**entry, **given}, by_root=True)

    return prepare


async def _connector(ada: Client, _root: Client) -> Call:
    user = {"id": global_ids.encode("User", ada.user.id)}
    return Call("connectorCreate", {**connector_mutations.ACCOUNT, "user": user}, by_root=True)


async def _brought(ada: Client, root: Client) -> Call:
    made = await CALLS["mailImport"](ada, root)
    users = {"ids": [global_ids.encode("User", ada.user.id)]}
    return Call("mailImport", {**made.input, "users": users}, by_root=True)


async def _pushed(ada: Client, _root: Client) -> Call:
    users = {"usernames": [ada.user.username]}
    given = {"users": users, "kind": "HTTP", "endpoint": "https://ntfy.example.net/ada"}
    return Call("pushChannelSet", given, by_root=True)


def _hers(name: str) -> Prepare:
    """A call about what is ada's."""

    async def prepare(ada: Client, root: Client) -> Call:
        made = await CALLS[name](ada, root)
        return Call(made.name, made.input, made.payload, by_root=True)

    return prepare


async def _reset(ada: Client, _root: Client) -> Call:
    given = {"user": {"id": global_ids.encode("User", ada.user.id)}}
    return Call("passwordReset", given, "password", by_root=True)


MBOX = "From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"


def _account(name: str, **given: Any) -> Prepare:
    """A call of what is done to ada's account, which ROOT may."""

    async def prepare(ada: Client, _root: Client) -> Call:
        user = {"id": global_ids.encode("User", ada.user.id)}
        return Call(name, {"user": user, **given}, by_root=True)

    return prepare


async def _identity(ada: Client, _root: Client) -> Call:
    user = {"id": global_ids.encode("User", ada.user.id)}
    given = {"user": user, "address": ada.address, "name": "Ada"}
    return Call("identityCreate", given, by_root=True)


async def _filter(ada: Client, root: Client) -> Call:
    return await _for_ada("filterCreate", ada, root)


async def _imported(ada: Client, root: Client) -> Call:
    return await _for_ada("filterImport", ada, root)


async def _for_ada(name: str, ada: Client, root: Client) -> Call:
    made = await CALLS[name](ada, root)
    user = {"id": global_ids.encode("User", ada.user.id)}
    return Call(made.name, {**made.input, "user": user}, by_root=True)


def _folder(name: str) -> Prepare:
    """A call of what is done to a folder of ada's, which there is."""

    async def prepare(ada: Client, root: Client) -> Call:
        made = await _named("mailboxCreate", paths=["A"])(ada, root)
        assert (await made(root))["errors"] == []
        return await _named(name, mailboxes=[{"path": "A"}])(ada, root)

    return prepare


async def _updated(ada: Client, _root: Client) -> Call:
    given = {
        "user": {"id": global_ids.encode("User", ada.user.id)},
        "mailboxes": [{"path": "Sent"}],
    }
    return Call("mailboxUpdate", {**given, "set": {"subscribed": False}}, by_root=True)


def _post(name: str, **given: Any) -> Prepare:
    """A call of what is done to ada's mail."""

    async def prepare(ada: Client, _root: Client) -> Call:
        await receive(ada)
        await receive(ada, sender="dave@example.com")
        whose = {"users": {"ids": [global_ids.encode("User", ada.user.id)]}, "all": True}
        return Call(name, {"select": whose, **given}, by_root=True)

    return prepare


async def _unanswered(ada: Client, root: Client) -> Call:
    given = {"set": {"enabled": True, "text": "I am away."}}
    made = await _named("autoreplySet", **given)(ada, root)
    assert (await made(root))["errors"] == []
    return await _named("autoreplyDelete")(ada, root)


async def _deleted(ada: Client, root: Client) -> None:
    delete = await _named("userDelete", deleteAfter="2031-01-01T00:00:00Z")(ada, root)
    assert (await delete(root))["errors"] == []


async def _restore(ada: Client, root: Client) -> Call:
    await _deleted(ada, root)
    given = {"by": {"id": global_ids.encode("User", ada.user.id)}}
    return Call("userRestore", given, by_root=True)


async def _purge(ada: Client, root: Client) -> Call:
    await _deleted(ada, root)
    return await _named("userPurge")(ada, root)


def _script(mutation: str, /, **given: Any) -> Prepare:
    """A call of what is done to a script of ada's, which there is and runs."""

    async def prepare(ada: Client, root: Client) -> Call:
        put = await _named("sieveScriptPut", name="a", content="keep;", activate=True)(ada, root)
        assert (await put(root))["errors"] == []
        if mutation == "sieveScriptActivate":
            stop = await _named("sieveScriptDeactivate")(ada, root)
            assert (await stop(root))["errors"] == []
        return await _named(mutation, **given)(ada, root)

    return prepare


LOGGED: dict[str, Logged] = {
    "addressCreate": Logged("Address", after=("address", "user")),
    "addressCreateTemporary": Logged(
        "Address", after=("address", "user"), prepare=_account("addressCreateTemporary")
    ),
    "addressDelete": Logged("Address", before=("address",)),
    "addressUpdate": Logged("Address", before=("active", "targets"), after=("active", "targets")),
    "accountExport": Logged("User", prepare=_account("accountExport")),
    "accountImport": Logged("User", prepare=_account("accountImport", archive={"text": MBOX})),
    "actAs": Logged("User", after=("until",)),
    "auditCreate": Logged("Audit", after=("user", "expires")),
    "auditDelete": Logged("Audit", before=("user",)),
    "autoreplyDelete": Logged("User", before=("enabled",), prepare=_unanswered),
    "autoreplySet": Logged(
        "User",
        after=("enabled", "text"),
        prepare=_named("autoreplySet", set={"enabled": True, "text": "I am away."}),
    ),
    "bccRuleCreate": Logged("BccRule", after=("match", "bccTo", "direction", "active")),
    "bccRuleDelete": Logged("BccRule", before=("match", "bccTo", "direction", "active")),
    "bccRuleUpdate": Logged("BccRule", before=("bccTo",), after=("bccTo",)),
    "certificateDelete": Logged("Certificate", before=("serverName", "fingerprintSha256")),
    "certificateRenew": Logged("Certificate", after=("serverName",)),
    "certificateSet": Logged("Certificate", after=("serverName", "acme", "fingerprintSha256")),
    "customTwoFactorDisable": Logged("User", before=("enabled2fa",), after=("enabled2fa",)),
    "customTwoFactorEnable": Logged("User", before=("enabled2fa",), after=("enabled2fa",)),
    "dkimKeyActivate": Logged("DkimKey", before=("state",), after=("state",)),
    "dkimKeyCopy": Logged("DkimKey", after=("domain", "selector", "fingerprint")),
    "dkimKeyDelete": Logged("DkimKey", before=("domain", "selector", "fingerprint")),
    "dkimKeyRotate": Logged("DkimKey", after=("domain", "selector", "state")),
    "dkimKeySet": Logged("DkimKey", after=("domain", "selector", "algorithm")),
    "domainAliasCreate": Logged("DomainAlias"),
    "domainAliasDelete": Logged("DomainAlias"),
    "domainCreate": Logged("Domain"),
    "domainDelete": Logged("Domain"),
    "domainRename": Logged("Domain"),
    "domainUpdate": Logged("Domain", before=("description",), after=("description",)),
    "filterCreate": Logged("Filter", after=("name", "order", "active"), prepare=_filter),
    "filterDelete": Logged("Filter", before=("name",), prepare=_hers("filterDelete")),
    "filterImport": Logged("Filter", after=("name", "order", "active"), prepare=_imported),
    "filterUpdate": Logged(
        "Filter", before=("name",), after=("name",), prepare=_hers("filterUpdate")
    ),
    "identityCreate": Logged(
        "Identity",
        after=("address", "name"),
        prepare=_identity,
    ),
    "identityDelete": Logged(
        "Identity", before=("address", "name"), prepare=_hers("identityDelete")
    ),
    "identityUpdate": Logged(
        "Identity",
        before=("address", "name"),
        after=("address", "name"),
        prepare=_hers("identityUpdate"),
    ),
    "mailboxCreate": Logged("User", prepare=_named("mailboxCreate", paths=["A"])),
    "mailboxDelete": Logged("User", prepare=_folder("mailboxDelete")),
    "mailboxMetadataSet": Logged(
        "User",
        prepare=_named(
            "mailboxMetadataSet", mailbox={"path": "INBOX"}, key="/private/comment", value="x"
        ),
    ),
    "mailboxMetadataUnset": Logged(
        "User",
        prepare=_named("mailboxMetadataUnset", mailbox={"path": "INBOX"}, key="/private/comment"),
    ),
    "mailboxRename": Logged(
        "User", prepare=_named("mailboxRename", mailbox={"path": "Sent"}, newPath="A")
    ),
    "mailboxStateSet": Logged("User"),
    "mailboxSubscribe": Logged("User", prepare=_named("mailboxSubscribe", paths=["A"])),
    "mailboxUnsubscribe": Logged("User", prepare=_named("mailboxUnsubscribe", paths=["Sent"])),
    "mailboxUpdate": Logged("User", prepare=_updated),
    "messageCopy": Logged(
        "User", after=("messages",), prepare=_post("messageCopy", to={"path": "Sent"})
    ),
    "messageDeduplicate": Logged("User", after=("messages",), prepare=_post("messageDeduplicate")),
    "messageDelete": Logged("User", after=("messages",), prepare=_post("messageDelete")),
    "messageMove": Logged(
        "User", after=("messages",), prepare=_post("messageMove", to={"path": "Sent"})
    ),
    "messageTierMove": Logged("User", after=("messages",)),
    "messageUpload": Logged(
        "User",
        prepare=_named("messageUpload", mailbox={"path": "INBOX"}, raw="Subject: x\n\nx\n"),
    ),
    "messageUpdate": Logged(
        "User", after=("messages",), prepare=_post("messageUpdate", set={"seen": True})
    ),
    "connectorCancel": Logged("ConnectorRun", before=("state",), prepare=_hers("connectorCancel")),
    "connectorCreate": Logged("Connector", after=("name", "host"), prepare=_connector),
    "connectorDelete": Logged(
        "Connector", before=("name", "host"), prepare=_hers("connectorDelete")
    ),
    "connectorRun": Logged("Connector", after=("name", "trial"), prepare=_hers("connectorRun")),
    "connectorUpdate": Logged(
        "Connector",
        before=("name", "host", "active"),
        after=("name", "host", "active"),
        prepare=_hers("connectorUpdate"),
    ),
    "mailImport": Logged("User", prepare=_brought),
    "keyValueDelete": Logged(
        "KeyValue", before=("store", "key", "entries"), prepare=_shared("keyValueDelete")
    ),
    "keyValueIncrement": Logged(
        "KeyValue", after=("store", "key"), prepare=_shared("keyValueIncrement", difference=1)
    ),
    "keyValueSet": Logged(
        "KeyValue", after=("store", "key"), prepare=_shared("keyValueSet", value="correct horse")
    ),
    "passwordReset": Logged("User", prepare=_reset),
    "profileReset": Logged("User", prepare=_named("profileReset")),
    "totpImport": Logged("User", after=("enabled2fa",)),
    "userDelete": Logged("User", before=("username",), prepare=_named("userDelete")),
    "userPermissionsSet": Logged("User", prepare=_named("userPermissionsSet", permissions=[])),
    "userPurge": Logged("User", before=("username",), prepare=_purge),
    "userRestore": Logged("User", prepare=_restore),
    "userRoleSet": Logged(
        "User", before=("role",), after=("role",), prepare=_named("userRoleSet", role="ADMIN")
    ),
    "apiKeyCreate": Logged("ApiKey", after=("name", "role"), prepare=_key_for_ada),
    "apiKeyDelete": Logged("ApiKey", before=("name", "role"), prepare=_others_key),
    "senderRuleCreate": Logged(
        "SenderRule", after=("pattern", "action", "place"), prepare=_hers("senderRuleCreate")
    ),
    "senderRuleDelete": Logged(
        "SenderRule", before=("pattern", "action", "place"), prepare=_hers("senderRuleDelete")
    ),
    "quarantineDelete": Logged(
        "QuarantineItem", before=("sender", "recipient"), prepare=_hers("quarantineDelete")
    ),
    "quarantineNotificationSet": Logged(
        "User",
        before=("quarantine_notification",),
        after=("quarantine_notification",),
        prepare=_named("quarantineNotificationSet", frequency="WEEKLY"),
    ),
    "quarantineRelease": Logged(
        "QuarantineItem", before=("sender", "recipient"), prepare=_hers("quarantineRelease")
    ),
    "queueDelete": Logged("QueueEntry", before=("queueId", "sender"), prepare=_hers("queueDelete")),
    "queueFlush": Logged("QueueEntry", before=("queueId", "sender")),
    "queueHold": Logged("QueueEntry", before=("queueId", "sender"), after=("hold",)),
    "rateLimitReset": Logged("User", before=("rate_limit",), after=("rate_limit",)),
    "rateLimitSet": Logged("User", before=("rate_limit",), after=("rate_limit",)),
    "recipientRewriteCreate": Logged("RecipientRewrite", after=("from", "to", "active")),
    "recipientRewriteDelete": Logged("RecipientRewrite", before=("from", "to", "active")),
    "recipientRewriteUpdate": Logged("RecipientRewrite", before=("to",), after=("to",)),
    "sieveScriptActivate": Logged(
        "SieveScript",
        before=("name", "active"),
        after=("name", "active"),
        prepare=_script("sieveScriptActivate", name="a"),
    ),
    "sieveScriptDeactivate": Logged(
        "SieveScript", after=("active",), prepare=_script("sieveScriptDeactivate")
    ),
    "sieveScriptDelete": Logged(
        "SieveScript",
        before=("name", "size"),
        prepare=_script("sieveScriptDelete", names=["a"], ignoreActive=True),
    ),
    "sieveScriptPut": Logged(
        "SieveScript",
        after=("name", "size"),
        prepare=_script("sieveScriptPut", name="b", content="discard;"),
    ),
    "sieveScriptRename": Logged(
        "SieveScript",
        before=("name",),
        after=("name",),
        prepare=_script("sieveScriptRename", name="a", newName="b"),
    ),
    "forwardingHostCreate": Logged("ForwardingHost", after=("host", "source", "filterSpam")),
    "forwardingHostDelete": Logged("ForwardingHost", before=("host", "source", "filterSpam")),
    "relayHostCreate": Logged("RelayHost", after=("host", "port", "username", "tls", "active")),
    "relayHostDelete": Logged("RelayHost", before=("host", "port", "username", "tls", "active")),
    "relayHostUpdate": Logged("RelayHost", before=("active",), after=("active",)),
    "transportCreate": Logged("Transport", after=("destination", "nextHop", "active")),
    "transportDelete": Logged("Transport", before=("destination", "nextHop", "active")),
    "transportUpdate": Logged("Transport", before=("nextHop",), after=("nextHop",)),
    "tlsPolicyCreate": Logged("TlsPolicy", after=("destination", "policy", "parameters")),
    "tlsPolicyDelete": Logged("TlsPolicy", before=("destination", "policy", "parameters")),
    "tlsPolicyUpdate": Logged(
        "TlsPolicy", before=("policy", "parameters"), after=("policy", "parameters")
    ),
    "settingDelete": Logged("Setting", before=("submission.maxRecipients",)),
    "settingSet": Logged("Setting", after=("submission.maxRecipients",)),
    "usageReset": Logged("User", before=("limits",), after=("limits",)),
    "userCreate": Logged("User", after=("username", "role")),
    "usersCreate": Logged("User", after=("username", "role")),
    "usersCreateFromFile": Logged("Task", after=("file",)),
    "pushChannelDelete": Logged(
        "PushChannel", before=("kind",), prepare=_hers("pushChannelDelete")
    ),
    "pushChannelSet": Logged("PushChannel", after=("kind", "active"), prepare=_pushed),
    "pushChannelTest": Logged("PushChannel", before=("kind",), prepare=_hers("pushChannelTest")),
    "webhookCreate": Logged("Webhook", after=("types", "url")),
    "webhookDelete": Logged("Webhook", before=("types", "url")),
    "webhookReplay": Logged("Webhook", after=("events",)),
    "webhookSecretRotate": Logged("Webhook"),
    "webhookTest": Logged("Webhook"),
    "webhookUpdate": Logged("Webhook", before=("active",), after=("active",)),
}
# for administrators, but nothing is changed of others
UNLOGGED: dict[str, str] = {
    "authCacheFlush": "what is remembered is asked of the store again, and nothing else",
    "mailboxRepair": "what can be computed is computed afresh",
    "quotaRecalculate": "what is counted is counted afresh",
    "routeTest": "nothing is changed, and nothing is sent",
    "searchIndexBuild": "what comes to be indexed anyway is indexed ahead of its turn",
    "searchIndexOptimize": "the index finds what it found before",
    "searchIndexRebuild": "the index is computed afresh",
}
