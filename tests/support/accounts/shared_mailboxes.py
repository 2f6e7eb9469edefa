"""Operations on shared mailboxes."""

from typing import Any

from graph.types import global_ids
from tests.conftest import GraphQLClient
from tests.support.accounts.user_operations import ERROR_FIELDS
from tests.support.operations.mailbox_operations import append_unread_messages

READ_RIGHTS = ["READ"]
ACL_FIELDS = "mailboxes { path shares { grantee { username } rights } }"


async def run_mailbox_mutation(
    client: GraphQLClient, name: str, selection: str = "mailboxes { path }", **input_values: Any
) -> Any:
    """Run a mutation and return its payload."""
    input_type = name[0].upper() + name[1:]
    document = (
        f"mutation ($input: {input_type}Input!) "
        f"{{ {name}(input: $input) {{ {selection} {ERROR_FIELDS} }} }}"
    )
    return (await client(document, input=input_values))[name]


async def share_mailbox(
    owner: GraphQLClient,
    grantee: GraphQLClient | str,
    *rights: str,
    path: str = "Team",
    **mailbox_ref: Any,
) -> list[str]:
    """Share a mailbox and return the error codes."""
    username = grantee if isinstance(grantee, str) else grantee.user.username
    input_values = {
        "mailbox": mailbox_ref or {"path": path},
        "user": {"username": username},
        "rights": rights,
    }
    payload = await run_mailbox_mutation(owner, "mailboxShareSet", ACL_FIELDS, **input_values)
    return [error["code"] for error in payload["errors"]]


async def create_team_mailbox(owner: GraphQLClient, *subjects: str) -> str:
    """Create the mailbox Team with unread messages, and return its global id."""
    await run_mailbox_mutation(owner, "mailboxCreate", paths=["Team"])
    await append_unread_messages(owner, "Team", *subjects)
    return mailbox_global_id((await owner.load_mailbox("Team")).id)


def mailbox_global_id(mailbox_id: int) -> str:
    return str(global_ids.encode("Mailbox", mailbox_id))


async def list_message_ids(client: GraphQLClient, path: str) -> list[str]:
    """List the ids of the messages of a mailbox as its owner, the newest first."""
    document = """query ($p: String!) { mailbox(by: {path: $p}) { messages { nodes { id } } } }"""
    return [
        message["id"]
        for message in (await client(document, p=path))["mailbox"]["messages"]["nodes"]
    ]
