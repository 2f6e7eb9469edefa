"""Spam verdicts, spam training and sender rules."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.spam.sender_rules import SenderRule
from models.spam.training import TrainingMessage
from models.store.columns import core_table
from models.users.roles import Role
from tests.conftest import GraphQLClient
from tests.support.operations.domain_operations import ERRORS, error_summary, run_mutation

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
DELETE_RULES = f"""mutation ($input: SenderRuleDeleteInput!) {{
  senderRuleDelete(input: $input) {{ deletedIds {ERRORS} }} }}"""
LIST_RULES = """query ($filter: SenderRuleFilter, $first: Int, $after: String, $last: Int,
                 $before: String) {
  senderRules(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    nodes { action pattern } totalCount pageInfo { startCursor endCursor hasNextPage } } }"""
RULE_NODE = "query ($id: ID!) { node(id: $id) { ... on SenderRule { pattern } } }"
ADA_SCOPE = {"user": {"username": "ada"}}
GLOBAL_SCOPE = {"global": True}
RULE_CREATED = EventType.SENDER_RULE_CREATED
RULE_UPDATED = EventType.SENDER_RULE_UPDATED
RULE_DELETED = EventType.SENDER_RULE_DELETED


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


async def rule_error(client: GraphQLClient, **arguments: Any) -> tuple[Any, ...]:
    """Return the error of a call that creates no rule."""
    defaults = {"scope": ADA_SCOPE, "action": "ALLOW", "patterns": ["shop.example"]}
    rows_before = await rule_rows(client.environment)
    answer, errors = await run_mutation(client, SENDER_RULE_CREATE, **{**defaults, **arguments})
    assert (answer["senderRules"], await rule_rows(client.environment)) == ([], rows_before)
    return error_summary(errors)


async def rule_rows(environment: Environment) -> list[Any]:
    table = core_table(SenderRule)
    async with environment.database.engine.connect() as connection:
        return list((await connection.execute(select(table).order_by(table.c.id))).all())


async def visible_patterns(client: GraphQLClient, **filter: Any) -> str:
    """Return the patterns of the rules that the client can see."""
    page = (await client(LIST_RULES, filter=filter or None))["senderRules"]
    patterns = [node["pattern"] for node in page["nodes"]]
    assert page["totalCount"] == len(patterns)
    return " ".join(patterns)
