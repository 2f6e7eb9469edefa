"""How tests do things to many messages, by GraphQL."""

from typing import Any

from tests.conftest import Client

ERRORS = """errors { __typename code path index ... on ValidationError { constraint }
  ... on StaleError { currentModseq } ... on QuotaExceededError { used allowed } }"""
TASK = "task { id kind state done total result error startedAt finishedAt }"
UNDO = "undo { token expiresAt }"
UPDATE = f"""
mutation ($input: MessageUpdateInput!) {{ messageUpdate(input: $input) {{
  updatedCount messages {{ id flags expires metaData modseq }} {TASK} {UNDO} {ERRORS} }} }}
"""
MOVE = f"""
mutation ($input: MessageMoveInput!) {{ messageMove(input: $input) {{
  movedCount
  moved {{ oldUid newUid message {{ id flags expires mailbox {{ path total unseen }} }} }}
  {TASK} {UNDO} {ERRORS} }} }}
"""
COPY = f"""
mutation ($input: MessageCopyInput!) {{ messageCopy(input: $input) {{
  copiedCount
  copied {{ oldUid newUid message {{ id uid flags expires mailbox {{ path total unseen }} }} }}
  {TASK} {ERRORS} }} }}
"""
DELETE = f"""
mutation ($input: MessageDeleteInput!) {{ messageDelete(input: $input) {{
  deletedCount deletedMailboxes {TASK} {UNDO} {ERRORS} }} }}
"""
DEDUPLICATE = DELETE.replace("messageDelete", "messageDeduplicate").replace(
    "MessageDeleteInput", "MessageDeduplicateInput"
)
TIER_MOVE = f"""
mutation ($input: MessageTierMoveInput!) {{ messageTierMove(input: $input) {{
  movedCount {TASK} {ERRORS} }} }}
"""
TAKE_BACK = f"""
mutation ($token: String!) {{ undo(input: {{token: $token}}) {{ restoredCount {ERRORS} }} }}
"""
UPLOAD = f"""
mutation ($input: MessageUploadInput!) {{ messageUpload(input: $input) {{
  message {{ id uid flags size receivedAt savedAt expires metaData source mailbox {{ path }} }}
  messages {{ id }} {ERRORS} }} }}
"""
FOUND = """
{ viewer { user { messages(first: 250, orderBy: RECEIVED_ASC) {
  nodes { id uid subject flags expires metaData mailbox { path } } } } } }
"""
NAMED = {
    "messageUpdate": UPDATE,
    "messageMove": MOVE,
    "messageCopy": COPY,
    "messageDelete": DELETE,
    "messageDeduplicate": DEDUPLICATE,
    "messageTierMove": TIER_MOVE,
    "messageUpload": UPLOAD,
}


async def call(client: Client, name: str, **given: Any) -> Any:
    return (await client(NAMED[name], input=given))[name]


async def take_back(client: Client, answer: Any) -> Any:
    return (await client(TAKE_BACK, token=answer["undo"]["token"]))["undo"]


async def nodes(client: Client) -> list[Any]:
    found: list[Any] = (await client(FOUND))["viewer"]["user"]["messages"]["nodes"]
    return found


async def keys(client: Client) -> list[str]:
    return [node["id"] for node in await nodes(client)]


async def places(client: Client) -> dict[str, str]:
    """Where each message lies, by subject."""
    return {node["subject"]: node["mailbox"]["path"] for node in await nodes(client)}


def of(*clients: Client) -> dict[str, Any]:
    """These users."""
    return {"usernames": [client.user.username for client in clients]}


def inbox(uids: str) -> dict[str, Any]:
    return {"mailbox": {"path": "INBOX"}, "uids": uids}
