"""BCC rules and recipient rewrites by GraphQL, and their effect on incoming messages."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.delivery.listener_backend import LocalBackend
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from tests.conftest import GraphQLClient, raw_message
from tests.support.operations.domain_operations import ERRORS, run_mutation

BCC_RULE_FIELDS = "id match bccTo direction domain { name } active createdAt updatedAt"
RECIPIENT_REWRITE_FIELDS = "id from to active createdAt updatedAt"
ARCHIVE = "archive@far.example"


def _mutation(name: str, payload: str) -> str:
    return f"""mutation ($input: {name[0].upper()}{name[1:]}Input!) {{ {name}(input: $input) {{
      {payload} journalCursor {ERRORS} }} }}"""


BCC_RULE_CREATE = _mutation("bccRuleCreate", f"bccRule {{ {BCC_RULE_FIELDS} }}")
BCC_RULE_UPDATE = _mutation("bccRuleUpdate", f"bccRules {{ {BCC_RULE_FIELDS} }}")
BCC_RULE_DELETE = _mutation("bccRuleDelete", "deletedIds")
BCC_RULES_QUERY = f"""query ($first: Int, $after: String, $last: Int, $before: String) {{
  bccRules(first: $first, after: $after, last: $last, before: $before) {{
    totalCount nodes {{ {BCC_RULE_FIELDS} }}
    pageInfo {{ endCursor startCursor hasNextPage }} }} }}"""
RECIPIENT_REWRITE_CREATE = _mutation(
    "recipientRewriteCreate",
    f"recipientRewrite {{ {RECIPIENT_REWRITE_FIELDS} }}",
)
RECIPIENT_REWRITE_UPDATE = _mutation(
    "recipientRewriteUpdate",
    f"recipientRewrites {{ {RECIPIENT_REWRITE_FIELDS} }}",
)
RECIPIENT_REWRITE_DELETE = _mutation("recipientRewriteDelete", "deletedIds")
RECIPIENT_REWRITES_QUERY = BCC_RULES_QUERY.replace("bccRules", "recipientRewrites").replace(
    BCC_RULE_FIELDS, RECIPIENT_REWRITE_FIELDS
)


async def create_bcc_rule(
    client: GraphQLClient, match: str, bcc_to: str, direction: str = "RECIPIENT"
) -> str:
    """Create a BCC rule and return its id."""
    payload, errors = await run_mutation(
        client, BCC_RULE_CREATE, match=match, bccTo=bcc_to, direction=direction
    )
    assert errors == []
    return str(payload["bccRule"]["id"])


async def create_recipient_rewrite(
    client: GraphQLClient, match: str, target: str, **fields: Any
) -> str:
    """Create a recipient rewrite and return its id."""
    payload, errors = await run_mutation(
        client, RECIPIENT_REWRITE_CREATE, **{"from": match, "to": target, **fields}
    )
    assert errors == []
    return str(payload["recipientRewrite"]["id"])


async def deliver_incoming(
    environment: Environment, *addresses: str, raw: bytes = b"", sender: str = "carol@example.com"
) -> None:
    """Deliver a message from another server, as LMTP does."""
    backend = LocalBackend(environment)
    recipients = [await backend.accept_recipient(address, sender) for address in addresses]
    results = await backend.deliver(raw or raw_message("Hello"), recipients, sender)
    assert not [result for result in results if isinstance(result, BaseException)]


async def load_copy_recipients(environment: Environment) -> list[tuple[str, str]]:
    """Read the recipients of copies with the envelope senders."""
    statement = (
        select(col(QueueEntry.recipient), col(Submission.envelope_from))
        .join(Submission, col(Submission.id) == col(QueueEntry.submission_id))
        .where(col(Submission.copy_of).is_not(None))
        .order_by(col(QueueEntry.recipient))
    )
    return [
        (row.recipient, row.envelope_from) for row in await environment.database.read(statement)
    ]
