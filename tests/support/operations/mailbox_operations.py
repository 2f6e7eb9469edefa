"""Creating, changing and listing mailboxes."""

from dataclasses import replace
from typing import Any

from resolvers.context import Context
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.messages import message_import
from resolvers.messages.message_import import NewMessage
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, client_context, raw_message

MUTATION_ERRORS = "errors { code message path }"
MAILBOX_ERRORS = "errors { __typename code path ... on ValidationError { constraint } }"
MAILBOX_CREATE = f"""
mutation ($input: MailboxCreateInput!) {{
  mailboxCreate(input: $input) {{
    mailboxes {{ id path name specialUse subscribed hidden retention parent {{ path }} }}
    journalCursor replayed {MAILBOX_ERRORS}
  }}
}}
"""
MAILBOX_RENAME = f"""
mutation ($mailbox: MailboxRef!, $to: String!) {{
  mailboxRename(input: {{mailbox: $mailbox, newPath: $to}}) {{
    mailboxes {{ path }} {MAILBOX_ERRORS}
  }}
}}
"""
MAILBOX_DELETE = f"""
mutation ($input: MailboxDeleteInput!) {{
  mailboxDelete(input: $input) {{ deletedIds {MAILBOX_ERRORS} }}
}}
"""
MAILBOX_PATHS = """query ($all: Boolean! = false) { viewer { user {
  mailboxes(filter: {showHidden: $all}) { nodes { path } } } } }"""
DEFAULT_MAILBOXES = ["INBOX", "Drafts", "Junk", "Sent", "Trash"]


async def add_mailboxes(client: GraphQLClient, *paths: str) -> None:
    """Create mailboxes without a request."""
    await mailbox_create.create_mailboxes(client_context(client), NewMailboxes(paths))


async def run_mailbox_mutation(
    client: GraphQLClient, name: str, selection: str = "mailboxes { path }", **input_fields: Any
) -> Any:
    """Run a mutation of mailboxes and return its payload."""
    input_type = name[0].upper() + name[1:] + "Input"
    payload = f"{{ {selection} {MUTATION_ERRORS} }}"
    document = f"mutation ($input: {input_type}!) {{ {name}(input: $input) {payload} }}"
    return (await client(document, input=input_fields))[name]


async def update_by_path(
    client: GraphQLClient, *paths: str, apply: bool = False, **patch: Any
) -> Any:
    """Update mailboxes by their paths and return the payload."""
    selection = (
        "mailboxes { path hidden subscribed retention specialUse } tasks { id kind totalCount }"
    )
    refs = [{"path": path} for path in paths]
    arguments: dict[str, Any] = {"mailboxes": refs, "set": patch, "applyRetention": apply}
    return await run_mailbox_mutation(client, "mailboxUpdate", selection, **arguments)


async def create_mailboxes(
    client: GraphQLClient, *paths: str, **fields: Any
) -> tuple[list[Any], list[Any]]:
    """Create mailboxes by mutation; return the mailboxes and the errors."""
    payload = (await client(MAILBOX_CREATE, input={"paths": list(paths), **fields}))[
        "mailboxCreate"
    ]
    return payload["mailboxes"], payload["errors"]


async def rename_mailbox(client: GraphQLClient, mailbox: str | dict[str, Any], to: str) -> Any:
    """Rename a mailbox and return the payload."""
    ref = {"path": mailbox} if isinstance(mailbox, str) else mailbox
    return (await client(MAILBOX_RENAME, mailbox=ref, to=to))["mailboxRename"]


async def delete_mailboxes(client: GraphQLClient, *paths: str, **fields: Any) -> Any:
    """Delete mailboxes and return the payload."""
    refs = [{"path": path} for path in paths]
    return (await client(MAILBOX_DELETE, input={"mailboxes": refs, **fields}))["mailboxDelete"]


async def list_mailbox_paths(client: GraphQLClient, **variables: bool) -> list[str]:
    """List the paths of the mailboxes of the signed-in user."""
    user = (await client(MAILBOX_PATHS, **variables))["viewer"]["user"]
    return [box["path"] for box in user["mailboxes"]["nodes"]]


async def append_unread_messages(client: GraphQLClient, path: str, *subjects: str) -> None:
    """Store an unread message for each subject in a mailbox."""
    for subject in subjects:
        message = NewMessage(
            MailboxSelector(path=path), raw_message(subject).decode(), is_seen=False
        )
        assert await message_import.store_imported_message_and_load_if_readable(
            client_context(client), message
        )


def context_with_options(client: GraphQLClient, **options: Any) -> Context:
    """The context of a request in the same store with other options."""
    environment = replace(
        client.environment, options=replace(client.environment.options, **options)
    )
    return Context(
        environment, Viewer(client.user.id, client.user.role, client_context(client).viewer.scopes)
    )
