"""A call of every mutation that succeeds, on ground that is made ready for it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from graph import ids
from models.tasks import Task
from tests.conftest import Client, receive

PAYLOAD = "errors { __typename code message path index } replayed journalCursor"


@dataclass(frozen=True)
class Call:
    """A mutation with its input, and what to ask of its payload."""

    name: str
    input: dict[str, Any] = field(default_factory=dict)
    payload: str = ""
    journaled: bool = True  # whether it changes what the journal tells of
    by_root: bool = False

    def document(self) -> str:
        """The operation, with the input in `$input`."""
        kind = self.name[0].upper() + self.name[1:] + "Input"
        kind = {"apiKeyDelete": "IdsInput"}.get(self.name, kind[0].upper() + kind[1:])
        return (
            f"mutation ($input: {kind}!) {{ {self.name}(input: $input) "
            f"{{ {self.payload} {PAYLOAD} }} }}"
        )

    async def __call__(self, client: Client, **options: Any) -> Any:
        """What the payload is."""
        given = {**self.input, "options": options} if options else self.input
        return (await client(self.document(), input=given))[self.name]


Prepare = Callable[[Client, Client], Awaitable[Call]]
CALLS: dict[str, Prepare] = {}


def call(prepare: Prepare) -> Prepare:
    """Take a call into the list, under the name of its mutation."""
    words = prepare.__name__.split("_")
    CALLS[words[0] + "".join(word.capitalize() for word in words[1:])] = prepare
    return prepare


@call
async def api_key_create(_ada: Client, _root: Client) -> Call:
    return Call("apiKeyCreate", {"name": "reports"}, "apiKey { name }", journaled=False)


@call
async def api_key_delete(ada: Client, _root: Client) -> Call:
    document = 'mutation { apiKeyCreate(input: {name: "x"}) { apiKey { id } } }'
    key = (await ada(document))["apiKeyCreate"]["apiKey"]["id"]
    return Call("apiKeyDelete", {"ids": [key]}, "deletedIds", journaled=False)


@call
async def authenticate(_ada: Client, root: Client) -> Call:
    made = await (await user_create(_ada, root))(root)
    assert made["errors"] == []
    given = {"username": "eve@example.org", "password": "correct horse", "token": True}
    return Call("authenticate", given, "user { username }", journaled=False)


@call
async def mailbox_create(_ada: Client, _root: Client) -> Call:
    return Call("mailboxCreate", {"paths": ["Clients/Eve"]}, "mailboxes { path }")


@call
async def mailbox_delete(ada: Client, root: Client) -> Call:
    await _filed(ada, root)
    return Call("mailboxDelete", {"mailboxes": [{"path": "Clients/Eve"}]}, "deletedIds")


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
async def message_send(_ada: Client, _root: Client) -> Call:
    given = {"to": [{"address": "carol@example.com"}], "subject": "Hello", "text": "Hi."}
    return Call("messageSend", given, "submission { state } message { subject }")


@call
async def message_update(ada: Client, _root: Client) -> Call:
    key = await _message(ada)
    given = {"select": {"ids": [key]}, "set": {"seen": True, "addFlags": ["work"]}}
    return Call("messageUpdate", given, "updatedCount messages { flags } undo { token }")


@call
async def message_upload(_ada: Client, _root: Client) -> Call:
    given = {"mailbox": {"path": "INBOX"}, "raw": "Subject: Mine\n\nText\n"}
    return Call("messageUpload", given, "message { subject }")


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
async def undo(ada: Client, root: Client) -> Call:
    done = await (await message_delete(ada, root))(ada)
    return Call("undo", {"token": done["undo"]["token"]}, "restoredCount")


@call
async def user_create(_ada: Client, _root: Client) -> Call:
    given = {"address": "eve@example.org", "password": "correct horse"}
    return Call("userCreate", given, "user { username }", by_root=True)


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


def _ref(client: Client) -> dict[str, str]:
    return {"id": ids.encode("User", client.user.id)}


async def _message(ada: Client) -> str:
    return ids.encode("Message", (await receive(ada, "Pond news")).message_id)


async def _filed(ada: Client, root: Client) -> None:
    done = await (await message_move(ada, root))(ada)
    assert done["errors"] == []
