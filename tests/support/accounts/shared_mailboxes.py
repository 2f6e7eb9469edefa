"""Operations on shared mailboxes."""

from typing import Any

from graph.types import global_ids
from tests.conftest import Client
from tests.support.accounts.user_operations import ERRORS
from tests.support.operations.mailbox_operations import append_unread_messages

READ = ["READ"]
ACL_FIELDS = "mailboxes { path acl { grantee { username } rights } }"


async def mutate(
    client: Client, name: str, selection: str = "mailboxes { path }", **input_values: Any
) -> Any:
    """Run a mutation and return its payload."""
    input_type = name[0].upper() + name[1:]
    document = (
        f"mutation ($input: {input_type}Input!) "
        f"{{ {name}(input: $input) {{ {selection} {ERRORS} }} }}"
    )
    return (await client(document, input=input_values))[name]


async def share(
    owner: Client, grantee: Client | str, *rights: str, path: str = "Team", **mailbox_ref: Any
) -> list[str]:
    """Share a mailbox and return the error codes."""
    username = grantee if isinstance(grantee, str) else grantee.user.username
    input_values = {
        "mailbox": mailbox_ref or {"path": path},
        "user": {"username": username},
        "rights": rights,
    }
    payload = await mutate(owner, "mailboxShareSet", ACL_FIELDS, **input_values)
    return [error["code"] for error in payload["errors"]]


async def team(owner: Client, *subjects: str) -> str:
    """Create the mailbox Team with unread messages, and return its global id."""
    await mutate(owner, "mailboxCreate", paths=["Team"])
    await append_unread_messages(owner, "Team", *subjects)
    return box_id((await owner.box("Team")).id)


def box_id(mailbox_id: int) -> str:
    return str(global_ids.encode("Mailbox", mailbox_id))


async def keys(client: Client, path: str) -> list[str]:
    """List the ids of the messages of a mailbox as its owner, the newest first."""
    document = """query ($p: String!) { mailbox(by: {path: $p}) { messages { nodes { id } } } }"""
    return [
        message["id"]
        for message in (await client(document, p=path))["mailbox"]["messages"]["nodes"]
    ]
