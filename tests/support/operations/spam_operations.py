"""Spam verdicts, spam training and sender rules."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.runtime.environment import Environment
from models.spam.training import TrainingMessage
from models.users.roles import Role
from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import ERRORS, run_mutation

MESSAGE_MOVE = """mutation ($input: MessageMoveInput!) { messageMove(input: $input) {
movedCount errors { message } } }"""
SPAM_VERDICT_QUERY = """query ($id: ID!) { message(by: {id: $id}) {
spamReport { score requiredScore action virus symbols { name score description } } } }"""
SENDER_RULE_FIELDS = (
    "id action pattern comment createdAt scope { user { username } tag domain { name } global }"
)
SENDER_RULE_CREATE = f"""mutation ($input: SenderRuleCreateInput!) {{
  senderRuleCreate(input: $input) {{
    senderRules {{ {SENDER_RULE_FIELDS} }} journalCursor {ERRORS} }} }}"""


async def message_id_by_subject(client: GraphQLClient) -> dict[str, str]:
    """The ids of the messages of a user by subject."""
    data = await client("query { messages(first: 50) { nodes { id subject } } }")
    return {node["subject"]: node["id"] for node in data["messages"]["nodes"]}


async def move_message_by_subject(client: GraphQLClient, subject: str, **to: Any) -> None:
    """Move the message with this subject to another mailbox."""
    ids = [(await message_id_by_subject(client))[subject]]
    data = await client(MESSAGE_MOVE, input={"select": {"ids": ids}, "to": to})
    assert data["messageMove"]["errors"] == []


async def stored_training_verdicts(environment: Environment) -> list[bool]:
    """Spam or not, for each message that waits for training, by message id."""
    rows = await environment.database.read(
        select(col(TrainingMessage.spam)).order_by(col(TrainingMessage.message_id))
    )
    return [row.spam for row in rows]


@dataclass
class SenderRuleRecipient:
    """A recipient as sender rules see it."""

    user_id: int
    domain_id: int | None = None
    tags: Collection[str] = ()
    role: Role = Role.USER


async def create_sender_rules(
    client: GraphQLClient, scope: Any, *patterns: str, action: str = "BLOCK", **values: Any
) -> Any:
    """Create sender rules for these patterns and return them."""
    fields = {"scope": scope, "action": action, "patterns": patterns, **values}
    payload, errors = await run_mutation(client, SENDER_RULE_CREATE, **fields)
    assert errors == []
    return payload["senderRules"]
