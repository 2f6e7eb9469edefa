"""Changing many messages by GraphQL."""

from typing import Any

from tests.conftest import GraphQLClient

ERRORS = """errors { __typename code path ... on ValidationError { constraint }
  ... on StaleError { currentModseq } ... on QuotaExceededError { used limit } }"""
TASK_FIELDS = "task { id kind state doneCount totalCount result error startedAt finishedAt }"
UNDO_FIELDS = "undo { token expiresAt }"
MESSAGE_UPDATE = f"""
mutation ($input: MessageUpdateInput!) {{ messageUpdate(input: $input) {{
  updatedCount messages {{ id imap {{ flags modseq }} expiresAt metadata }}
  {TASK_FIELDS} {UNDO_FIELDS} {ERRORS} }} }}
"""
MESSAGE_MOVE = f"""
mutation ($input: MessageMoveInput!) {{ messageMove(input: $input) {{
  movedCount
  moved {{ oldUid newUid message {{ id imap {{ flags }} expiresAt
    mailbox {{ path messageCount unseenCount }} }} }}
  {TASK_FIELDS} {UNDO_FIELDS} {ERRORS} }} }}
"""
MESSAGE_COPY = f"""
mutation ($input: MessageCopyInput!) {{ messageCopy(input: $input) {{
  copiedCount
  copied {{ oldUid newUid message {{ id imap {{ uid flags }} expiresAt
    mailbox {{ path messageCount unseenCount }} }} }}
  {TASK_FIELDS} {ERRORS} }} }}
"""
MESSAGE_DELETE = f"""
mutation ($input: MessageDeleteInput!) {{ messageDelete(input: $input) {{
  deletedCount deletedMailboxIds {TASK_FIELDS} {UNDO_FIELDS} {ERRORS} }} }}
"""
MESSAGE_DEDUPLICATE = MESSAGE_DELETE.replace("messageDelete", "messageDeduplicate").replace(
    "MessageDeleteInput", "MessageDeduplicateInput"
)
MESSAGE_TIER_MOVE = f"""
mutation ($input: MessageTierMoveInput!) {{ messageTierMove(input: $input) {{
  movedCount {TASK_FIELDS} {ERRORS} }} }}
"""
UNDO_MUTATION = f"""
mutation ($token: String!) {{ undo(input: {{token: $token}}) {{ restoredCount {ERRORS} }} }}
"""
MESSAGE_IMPORT = f"""
mutation ($input: MessageImportInput!) {{ messageImport(input: $input) {{ messages {{
    id imap {{ uid flags }} size receivedAt savedAt expiresAt metadata rawSource
    mailbox {{ path }} }}
  {ERRORS} }} }}
"""
ALL_MESSAGES_QUERY = """
{ viewer { user { messages(first: 250, orderBy: RECEIVED_AT_ASC) {
  nodes { id imap { uid flags } subject expiresAt metadata mailbox { path } } } } } }
"""
MUTATIONS_BY_NAME = {
    "messageUpdate": MESSAGE_UPDATE,
    "messageMove": MESSAGE_MOVE,
    "messageCopy": MESSAGE_COPY,
    "messageDelete": MESSAGE_DELETE,
    "messageDeduplicate": MESSAGE_DEDUPLICATE,
    "messageTierMove": MESSAGE_TIER_MOVE,
    "messageImport": MESSAGE_IMPORT,
}


async def run_message_mutation(client: GraphQLClient, name: str, **input_fields: Any) -> Any:
    """Run a mutation of messages and return its payload."""
    return (await client(MUTATIONS_BY_NAME[name], input=input_fields))[name]


async def undo_mutation(client: GraphQLClient, payload: Any) -> Any:
    """Undo a mutation by the token of its payload."""
    return (await client(UNDO_MUTATION, token=payload["undo"]["token"]))["undo"]


async def list_messages(client: GraphQLClient) -> list[Any]:
    """List all messages of the signed-in user."""
    messages: list[Any] = (await client(ALL_MESSAGES_QUERY))["viewer"]["user"]["messages"]["nodes"]
    return messages


async def list_message_ids(client: GraphQLClient) -> list[str]:
    """List the ids of all messages of the signed-in user."""
    return [node["id"] for node in await list_messages(client)]


async def load_mailbox_path_by_subject(client: GraphQLClient) -> dict[str, str]:
    """Read the mailbox path of each message by its subject."""
    return {node["subject"]: node["mailbox"]["path"] for node in await list_messages(client)}


def user_selection(*clients: GraphQLClient) -> dict[str, Any]:
    """The selection of these users."""
    return {"usernames": [client.user.username for client in clients]}


def inbox_selection(uids: str) -> dict[str, Any]:
    """The selection of messages of the INBOX by UID."""
    return {"mailbox": {"path": "INBOX"}, "uids": uids}
