"""A call of every mutation that succeeds, on ground that is made ready for it."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import httpx

from graph import ids
from graph.app import create_app
from mail.blobs.store import LocalStore
from mail.blobs.tiers import Tiers
from models.auth import AccessToken
from models.roles import Role
from models.tasks import Task
from tests import factors
from tests.conftest import Client, Clock, make_client, receive

SHARED = {"mailboxUnsubscribe": "MailboxSubscribeInput"}
BY_IDS = {
    "apiKeyDelete",
    "appPasswordDelete",
    "auditDelete",
    "domainAliasDelete",
    "fileDelete",
    "fileShareDelete",
    "webhookDelete",
    "webhookTest",
}
THREADS = "{ viewer { user { messages { nodes { thread { id } } } } } }"
PAYLOAD = "errors { __typename code message path index } replayed journalCursor"


@dataclass(frozen=True)
class Call:
    """A mutation with its input, and what to ask of its payload."""

    name: str
    input: dict[str, Any] = field(default_factory=dict)
    payload: str = ""
    journaled: bool = True  # whether it changes what the journal tells of
    nudges: bool = False  # it tells clients to look at an account that is as it was
    by_root: bool = False
    by: Client | None = None  # who else makes it

    def document(self) -> str:
        """The operation, with the input in `$input`."""
        return f"mutation ($input: {self.kind}!) {{ {self.field('input')} }}"

    @property
    def kind(self) -> str:
        """The type of its input."""
        kind = self.name[0].upper() + self.name[1:] + "Input"
        return "IdsInput" if self.name in BY_IDS else SHARED.get(self.name, kind)

    def field(self, variable: str) -> str:
        """The field, with the input in a variable of this name."""
        return f"{self.name}(input: ${variable}) {{ {self.payload} {PAYLOAD} }}"

    async def __call__(self, client: Client, **options: Any) -> Any:
        """What the payload is."""
        own = self.input.get("options", {})
        given = {**self.input, "options": {**own, **options}} if options else self.input
        return (await client(self.document(), input=given))[self.name]


@dataclass(frozen=True)
class Calls:
    """Several mutations that are one unit."""

    each: Sequence[Call]

    async def __call__(self, client: Client) -> list[Any]:
        """What their payloads are."""
        kinds = ", ".join(f"$i{n}: {one.kind}!" for n, one in enumerate(self.each))
        fields = " ".join(f"f{n}: {one.field(f'i{n}')}" for n, one in enumerate(self.each))
        given = {f"i{n}": one.input for n, one in enumerate(self.each)}
        done = await client(f"mutation ({kinds}) @atomic {{ {fields} }}", **given)
        return list(done.values())


Prepare = Callable[[Client, Client], Awaitable[Call]]
CALLS: dict[str, Prepare] = {}


def call(prepare: Prepare) -> Prepare:
    """Take a call into the list, under the name of its mutation."""
    words = prepare.__name__.split("_")
    CALLS[words[0] + "".join(word.capitalize() for word in words[1:])] = prepare
    return prepare


@call
async def api_key_create(_ada: Client, _root: Client) -> Call:
    return Call("apiKeyCreate", {"name": "reports"}, "apiKey { name }")


@call
async def act_as(ada: Client, _root: Client) -> Call:
    boss = await make_client(ada.world, ada.http, "boss", role=Role.ADMIN)
    return Call("actAs", {"user": {"username": "ada"}}, "user { username } scope", by=boss)


@call
async def api_key_delete(ada: Client, _root: Client) -> Call:
    return Call("apiKeyDelete", {"ids": [await _key(ada)]}, "deletedIds")


@call
async def api_key_update(ada: Client, _root: Client) -> Call:
    given = {"ids": [await _key(ada)], "name": "y", "active": False}
    return Call("apiKeyUpdate", given, "apiKeys { name active }")


@call
async def auth_cache_flush(_ada: Client, _root: Client) -> Call:
    given = {"users": {"usernames": ["ada"]}}
    return Call("authCacheFlush", given, "entries", journaled=False, by_root=True)


@call
async def app_password_create(_ada: Client, _root: Client) -> Call:
    return Call("appPasswordCreate", {"description": "Phone"}, "appPassword { description }")


@call
async def app_password_delete(ada: Client, _root: Client) -> Call:
    return Call("appPasswordDelete", {"ids": [await _app_password(ada)]}, "deletedIds")


@call
async def app_password_update(ada: Client, _root: Client) -> Call:
    given = {"ids": [await _app_password(ada)], "active": False}
    return Call("appPasswordUpdate", given, "appPasswords { active }")


@call
async def archive_restore(ada: Client, root: Client) -> Call:
    assert (await (await message_delete(ada, root))(ada))["errors"] == []
    given = {"start": "2029-01-01T00:00:00Z", "end": "2031-01-01T00:00:00Z"}
    return Call("archiveRestore", given, "task { kind state total }")


@call
async def archived_message_restore(ada: Client, root: Client) -> Call:
    deleted = await message_delete(ada, root)
    assert (await deleted(ada))["errors"] == []
    key = ids.encode("ArchivedMessage", ids.decode("Message", deleted.input["select"]["ids"][0]))
    payload = "restored { mailbox { path } message { subject } }"
    return Call("archivedMessageRestore", {"ids": [key]}, payload)


@call
async def audit_create(ada: Client, _root: Client) -> Call:
    given = {"user": _ref(ada), "expires": "2031-01-01T00:00:00Z", "reason": "as ordered"}
    return Call("auditCreate", given, "audit { username messageCount }", by_root=True)


@call
async def audit_delete(ada: Client, root: Client) -> Call:
    create = await audit_create(ada, root)
    made = await Call(create.name, create.input, "audit { id }")(root)
    given = {"ids": [made["audit"]["id"]]}
    return Call("auditDelete", given, "deletedIds", journaled=False, by_root=True)


@call
async def authenticate(_ada: Client, root: Client) -> Call:
    made = await (await user_create(_ada, root))(root)
    assert made["errors"] == []
    given = {"username": "eve@example.org", "password": "correct horse", "token": True}
    return Call("authenticate", given, "user { username }")


@call
async def client_state_reset(_ada: Client, _root: Client) -> Call:
    return Call("clientStateReset", {}, "users { username }", nudges=True)


@call
async def custom_two_factor_disable(ada: Client, root: Client) -> Call:
    await (await custom_two_factor_enable(ada, root))(root)
    given = {"user": {"username": "ada"}, "options": {"reason": "the application is gone"}}
    payload = "user { enabled2fa }"
    return Call("customTwoFactorDisable", given, payload, by_root=True)


@call
async def custom_two_factor_enable(_ada: Client, _root: Client) -> Call:
    given = {"user": {"username": "ada"}}
    return Call("customTwoFactorEnable", given, "user { enabled2fa }", by_root=True)


@call
async def domain_alias_create(_ada: Client, _root: Client) -> Call:
    given = {"alias": "example.net", "domain": "example.org"}
    return Call("domainAliasCreate", given, "domainAlias { alias }", by_root=True)


@call
async def domain_alias_delete(ada: Client, root: Client) -> Call:
    create = await domain_alias_create(ada, root)
    made = await Call(create.name, create.input, "domainAlias { id }")(root)
    given = {"ids": [made["domainAlias"]["id"]]}
    return Call("domainAliasDelete", given, "deletedIds", by_root=True)


@call
async def domain_create(_ada: Client, _root: Client) -> Call:
    return Call("domainCreate", {"name": "new.example"}, "domain { name }", by_root=True)


@call
async def domain_delete(ada: Client, root: Client) -> Call:
    await (await domain_create(ada, root))(root)
    given = {"domains": [{"name": "new.example"}]}
    return Call("domainDelete", given, "deletedIds", by_root=True)


@call
async def domain_rename(_ada: Client, _root: Client) -> Call:
    given = {"oldDomain": "example.org", "newDomain": "renamed.example"}
    payload = "domain { name } addressesUpdated usersUpdated domainAliasesUpdated"
    return Call("domainRename", given, payload, by_root=True)


@call
async def domain_update(_ada: Client, _root: Client) -> Call:
    given = {"domains": [{"name": "example.org"}], "set": {"description": "Ours"}}
    return Call("domainUpdate", given, "domains { name description }", by_root=True)


@call
async def file_delete(ada: Client, root: Client) -> Call:
    made = await (await file_upload(ada, root))(ada)
    return Call("fileDelete", {"ids": [made["file"]["id"]]}, "deletedIds")


@call
async def file_share_create(ada: Client, root: Client) -> Call:
    made = await (await file_upload(ada, root))(ada)
    later(ada)
    given = {"file": made["file"]["id"], "mode": "SHARE_RW", "password": "correct horse"}
    return Call("fileShareCreate", given, "share { mode hasPassword }")


@call
async def file_share_delete(ada: Client, root: Client) -> Call:
    create = await file_share_create(ada, root)
    made = await Call(create.name, create.input, "share { id }")(ada)
    later(ada)
    return Call("fileShareDelete", {"ids": [made["share"]["id"]]}, "deletedIds")


@call
async def account_export(_ada: Client, _root: Client) -> Call:
    return Call("accountExport", {"format": "JSON"}, "export { format state }")


@call
async def account_import(_ada: Client, _root: Client) -> Call:
    text = "From a@b.example Tue Jan  6 10:00:00 2026\nSubject: x\n\nx\n"
    return Call("accountImport", {"archive": {"text": text}}, "task { kind state }")


@call
async def file_upload(_ada: Client, _root: Client) -> Call:
    given = {"filename": "pond.txt", "content": {"text": "Ducks."}}
    return Call("fileUpload", given, "file { id filename size }")


@call
async def key_value_delete(ada: Client, root: Client) -> Call:
    await (await key_value_set(ada, root))(ada)
    return Call("keyValueDelete", {"key": "ui", "recursive": True}, "deleted")


@call
async def key_value_increment(_ada: Client, _root: Client) -> Call:
    given = {"key": "ui/visits", "difference": 1, "createMissing": True}
    return Call("keyValueIncrement", given, "entry { key value }")


@call
async def key_value_set(_ada: Client, _root: Client) -> Call:
    return Call("keyValueSet", {"key": "ui/theme", "value": "dark"}, "entry { key value version }")


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
    return Call("messageDeduplicate", {"select": {"filter": {}}}, "deletedCount undo { expiresAt }")


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
    hot = ada.world.blobs
    assert isinstance(hot, LocalStore)
    folder = hot.folder.parent
    world = replace(ada.world, blobs=Tiers(hot, LocalStore(folder / "cold")))
    transport = httpx.ASGITransport(app=create_app(world, spool=folder))
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
async def search_index_build(ada: Client, _root: Client) -> Call:
    await receive(ada, "Waits")
    given = {"users": {"usernames": ["ada"]}, "mailboxMasks": ["*"]}
    return Call("searchIndexBuild", given, "indexed", journaled=False, by_root=True)


@call
async def search_index_optimize(_ada: Client, _root: Client) -> Call:
    return Call("searchIndexOptimize", {}, "task { kind }", by_root=True)


@call
async def search_index_rebuild(_ada: Client, _root: Client) -> Call:
    given = {"users": {"usernames": ["ada"]}}
    return Call("searchIndexRebuild", given, "task { kind total }", by_root=True)


@call
async def setting_delete(ada: Client, root: Client) -> Call:
    done = await (await setting_set(ada, root))(root)
    assert done["errors"] == []
    given = {"keys": ["submission.maxRecipients"]}
    return Call("settingDelete", given, "settings { key value custom }", by_root=True)


@call
async def setting_set(_ada: Client, _root: Client) -> Call:
    given = {"key": "submission.maxRecipients", "value": 50}
    return Call("settingSet", given, "setting { key value custom }", by_root=True)


@call
async def quota_recalculate(ada: Client, _root: Client) -> Call:
    given = {"users": {"ids": [_ref(ada)["id"]]}}
    payload = "results { storageUsed }"  # nothing of it has drifted
    return Call("quotaRecalculate", given, payload, journaled=False, by_root=True)


@call
async def recovery_codes_create(ada: Client, _root: Client) -> Call:
    proof = {"totp": await factors.code_on(ada)}
    return Call("recoveryCodesCreate", {"proof": proof})


@call
async def session_kick(ada: Client, _root: Client) -> Call:
    now, world = ada.world.now(), ada.world
    async with world.write(ada.user.id) as session:
        session.add(
            AccessToken(
                id=world.key(),
                user_id=ada.user.id,
                digest="x",
                auth_version=1,
                created_at=now,
                last_used_at=now,
                expires_at=now,
            )
        )
    return Call("sessionKick", {"revokeTokens": True}, "kicked results")


@call
async def submission_cancel(ada: Client, root: Client) -> Call:
    send = await message_send(ada, root)
    later = Call(
        "messageSend", {**send.input, "sendTime": "2031-01-01T00:00:00Z"}, "submission { id }"
    )
    key = (await later(ada))["submission"]["id"]
    return Call("submissionCancel", {"ids": [key]}, "submissions { state }")


@call
async def password_reset(ada: Client, _root: Client) -> Call:
    return Call("passwordReset", {"user": _ref(ada)}, by_root=True)


@call
async def profile_reset(ada: Client, root: Client) -> Call:
    await (await key_value_set(ada, root))(ada)
    return Call("profileReset", {}, "users { username }")


@call
async def spam_policy_set(_ada: Client, _root: Client) -> Call:
    return Call("spamPolicySet", {"junkScore": 5}, "users { username spam { junkScore } }")


@call
async def task_cancel(ada: Client, _root: Client) -> Call:
    key = ada.world.key()
    async with ada.world.write() as session:
        session.add(
            Task(
                id=key,
                kind="MESSAGE_UPDATE",
                user_id=ada.user.id,
                order={"ids": []},
                created_at=ada.world.now(),
            )
        )
    return Call("taskCancel", {"ids": [ids.encode("Task", key)]}, "tasks { state }")


@call
async def token_revoke(_ada: Client, _root: Client) -> Call:
    return Call("tokenRevoke", {"all": True}, "revoked", journaled=False)


@call
async def totp_check(ada: Client, _root: Client) -> Call:
    return Call("totpCheck", {"token": await factors.code_on(ada)}, "valid")


@call
async def totp_disable(ada: Client, _root: Client) -> Call:
    given = {"proof": {"totp": await factors.code_on(ada)}}
    return Call("totpDisable", given, "user { enabled2fa }")


@call
async def totp_enable(ada: Client, _root: Client) -> Call:
    code = factors.code_of(ada.world, await factors.seed_of(ada))
    return Call("totpEnable", {"token": code}, "user { enabled2fa }")


@call
async def totp_import(_ada: Client, _root: Client) -> Call:
    given = {"user": {"username": "ada"}, "seed": "GEZD GNBV GY3T QOJQ"}
    return Call("totpImport", given, "user { enabled2fa }", by_root=True)


@call
async def totp_setup(_ada: Client, _root: Client) -> Call:
    return Call("totpSetup", {"label": "Ada"})


@call
async def two_factor_disable(ada: Client, _root: Client) -> Call:
    given = {"proof": {"totp": await factors.code_on(ada)}}
    return Call("twoFactorDisable", given, "user { enabled2fa }")


@call
async def undo(ada: Client, root: Client) -> Call:
    done = await (await message_delete(ada, root))(ada)
    return Call("undo", {"token": done["undo"]["token"]}, "restoredCount")


@call
async def usage_reset(ada: Client, root: Client) -> Call:
    await receive(ada, "Hello")
    assert (await (await message_send(ada, root))(ada))["errors"] == []
    given = {"users": {"ids": [_ref(ada)["id"]]}}
    payload = "users { limits { recipients { used } received { used } } }"
    return Call("usageReset", given, payload, by_root=True)


@call
async def user_create(_ada: Client, _root: Client) -> Call:
    given = {"address": "eve@example.org", "password": "correct horse"}
    return Call("userCreate", given, "user { username }", by_root=True)


@call
async def user_delete(ada: Client, _root: Client) -> Call:
    given = {"users": {"ids": [_ref(ada)["id"]]}, "deleteAfter": "2031-01-01T00:00:00Z"}
    return Call("userDelete", given, "deletedIds", by_root=True)


@call
async def user_purge(ada: Client, _root: Client) -> Call:
    return Call("userPurge", {"users": {"ids": [_ref(ada)["id"]]}}, "purged", by_root=True)


@call
async def user_restore(ada: Client, root: Client) -> Call:
    assert (await (await user_delete(ada, root))(root))["errors"] == []
    given = {"by": {"username": "ada"}}
    return Call("userRestore", given, "user { username } recoveredAddresses", by_root=True)


@call
async def webauthn_challenge(_ada: Client, _root: Client) -> Call:
    return Call("webauthnChallenge", journaled=False)


@call
async def webauthn_check(ada: Client, _root: Client) -> Call:
    key = await factors.key_on(ada)
    return Call("webauthnCheck", {"response": await factors.signed(ada, key)}, "valid")


@call
async def webauthn_delete(ada: Client, _root: Client) -> Call:
    key = await factors.key_on(ada)
    proof = {"webauthn": await factors.signed(ada, key)}
    return Call("webauthnDelete", {"ids": [key.global_id], "proof": proof}, "deletedIds")


@call
async def webauthn_register(ada: Client, _root: Client) -> Call:
    response = await factors.made(ada, factors.SoftKey())
    given = {"name": "Blue", "response": response}
    return Call("webauthnRegister", given, "webauthnKey { name } user { enabled2fa }")


@call
async def user_permissions_set(ada: Client, _root: Client) -> Call:
    given = {"users": {"ids": [_ref(ada)["id"]]}, "permissions": ["APP_PASSWDS"]}
    return Call("userPermissionsSet", given, "users { permissions }", by_root=True)


@call
async def user_role_set(ada: Client, _root: Client) -> Call:
    charge = {"role": "DOMAIN_ADMIN", "administers": [{"name": "example.org"}]}
    given = {"users": {"ids": [_ref(ada)["id"]]}, **charge}
    return Call("userRoleSet", given, "users { role administers { name } }", by_root=True)


@call
async def user_update(_ada: Client, _root: Client) -> Call:
    given = {"name": "Ada L.", "metaData": {"born": 1815}, "language": "en"}
    return Call("userUpdate", {"set": given}, "users { username name }")


def later(client: Client) -> None:
    """Let a second pass: a change shows that leaves but its time."""
    clock = client.world.now
    assert isinstance(clock, Clock)
    clock.tick(seconds=1)


@call
async def webhook_create(_ada: Client, _root: Client) -> Call:
    given = {"url": "https://hooks.example.com/", "types": ["user.*"]}
    return Call("webhookCreate", given, "webhook { url }", journaled=False, by_root=True)


@call
async def webhook_delete(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _webhook(root)]}
    return Call("webhookDelete", given, "deletedIds", journaled=False, by_root=True)


@call
async def webhook_replay(_ada: Client, root: Client) -> Call:
    given = {"webhook": await _webhook(root), "after": "1.0.0"}
    return Call("webhookReplay", given, "task { kind }", by_root=True)


@call
async def webhook_secret_rotate(_ada: Client, root: Client) -> Call:
    given = {"id": await _webhook(root)}
    return Call("webhookSecretRotate", given, "webhook { id }", journaled=False, by_root=True)


@call
async def webhook_test(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _webhook(root)]}
    return Call("webhookTest", given, "webhooks { id }", journaled=False, by_root=True)


@call
async def webhook_update(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _webhook(root)], "active": False}
    return Call("webhookUpdate", given, "webhooks { active }", journaled=False, by_root=True)


async def _webhook(root: Client) -> str:
    made = await Call(
        "webhookCreate",
        {"url": "https://hooks.example.com/", "types": ["user.*"]},
        "webhook { id }",
    )(root)
    return str(made["webhook"]["id"])


def _ref(client: Client) -> dict[str, str]:
    return {"id": ids.encode("User", client.user.id)}


async def _key(ada: Client) -> str:
    document = 'mutation { apiKeyCreate(input: {name: "x"}) { apiKey { id } } }'
    return str((await ada(document))["apiKeyCreate"]["apiKey"]["id"])


async def _app_password(ada: Client) -> str:
    done = await ada(
        'mutation { appPasswordCreate(input: {description: "Phone"}) { appPassword { id } } }'
    )
    key: str = done["appPasswordCreate"]["appPassword"]["id"]
    return key


async def _message(ada: Client) -> str:
    return ids.encode("Message", (await receive(ada, "Pond news")).message_id)


async def _thread(ada: Client) -> str:
    await receive(ada, "Pond news")
    nodes = (await ada(THREADS))["viewer"]["user"]["messages"]["nodes"]
    return str(nodes[0]["thread"]["id"])


async def _filed(ada: Client, root: Client) -> None:
    done = await (await message_move(ada, root))(ada)
    assert done["errors"] == []
