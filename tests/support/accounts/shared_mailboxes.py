"""What tests of shared folders share."""

from typing import Any

from graph.types import global_ids
from tests.conftest import Client
from tests.support.accounts.user_operations import ERRORS
from tests.support.operations.mailbox_operations import append_unread_messages

READ = ["READ"]
ACL = "mailboxes { path acl { grantee { username } rights } }"


async def mutate(
    client: Client, name: str, selection: str = "mailboxes { path }", **given: Any
) -> Any:
    """The payload of a mutation."""
    kind = name[0].upper() + name[1:]
    document = (
        f"mutation ($input: {kind}Input!) {{ {name}(input: $input) {{ {selection} {ERRORS} }} }}"
    )
    return (await client(document, input=given))[name]


async def share(
    owner: Client, to: Client | str, *rights: str, path: str = "Team", **ref: Any
) -> list[str]:
    """Share a folder; the codes of what was refused."""
    name = to if isinstance(to, str) else to.user.username
    given = {"mailbox": ref or {"path": path}, "user": {"username": name}, "rights": rights}
    answer = await mutate(owner, "mailboxShareSet", ACL, **given)
    return [error["code"] for error in answer["errors"]]


async def team(owner: Client, *subjects: str) -> str:
    """The id of a folder with messages, that is made for it."""
    await mutate(owner, "mailboxCreate", paths=["Team"])
    await append_unread_messages(owner, "Team", *subjects)
    return box_id((await owner.box("Team")).id)


def box_id(key: int) -> str:
    return str(global_ids.encode("Mailbox", key))


async def keys(client: Client, path: str) -> list[str]:
    """The ids of the messages of a folder, as its owner lists them, the newest first."""
    document = """query ($p: String!) { mailbox(by: {path: $p}) { messages { nodes { id } } } }"""
    return [one["id"] for one in (await client(document, p=path))["mailbox"]["messages"]["nodes"]]
