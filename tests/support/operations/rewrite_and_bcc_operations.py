"""What tests of rewrites and copies share: documents, mail that comes, and what is copied."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from mail.delivery.listener_backend import LocalBackend
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from tests.conftest import Client, raw_message
from tests.support.operations.domain_operations import ERRORS, done

RULE = "id match bccTo direction domain { name } active createdAt updatedAt"
REWRITE = "id from to active createdAt updatedAt"


def _mutation(name: str, payload: str) -> str:
    kind = "IdsInput" if name.endswith("Delete") else f"{name[0].upper()}{name[1:]}Input"
    return f"""mutation ($input: {kind}!) {{ {name}(input: $input) {{
      {payload} journalCursor {ERRORS} }} }}"""


RULE_CREATE = _mutation("bccRuleCreate", f"bccRule {{ {RULE} }} bccRules {{ id }}")
RULE_UPDATE = _mutation("bccRuleUpdate", f"bccRule {{ {RULE} }} bccRules {{ {RULE} }}")
RULE_DELETE = _mutation("bccRuleDelete", "deletedIds")
RULES = f"""query ($first: Int, $after: String, $last: Int, $before: String) {{
  bccRules(first: $first, after: $after, last: $last, before: $before) {{
    totalCount nodes {{ {RULE} }} pageInfo {{ endCursor startCursor hasNextPage }} }} }}"""
REWRITE_CREATE = _mutation(
    "recipientRewriteCreate", f"recipientRewrite {{ {REWRITE} }} recipientRewrites {{ id }}"
)
REWRITE_UPDATE = _mutation(
    "recipientRewriteUpdate",
    f"recipientRewrite {{ {REWRITE} }} recipientRewrites {{ {REWRITE} }}",
)
REWRITE_DELETE = _mutation("recipientRewriteDelete", "deletedIds")
REWRITES = RULES.replace("bccRules", "recipientRewrites").replace(RULE, REWRITE)


async def rule(client: Client, match: str, to: str, direction: str = "RECIPIENT") -> str:
    """The id of a new BCC rule."""
    answer, errors = await done(client, RULE_CREATE, match=match, bccTo=to, direction=direction)
    assert errors == []
    return str(answer["bccRule"]["id"])


async def rewrite(client: Client, of: str, to: str, **more: Any) -> str:
    """The id of a new rewrite."""
    answer, errors = await done(client, REWRITE_CREATE, **{"from": of, "to": to, **more})
    assert errors == []
    return str(answer["recipientRewrite"]["id"])


async def come(
    world: Environment, *to: str, raw: bytes = b"", sender: str = "carol@example.com"
) -> None:
    """Mail comes in, as LMTP hands it on."""
    household = LocalBackend(world)
    there = [await household.accept_recipient(address, sender) for address in to]
    outcomes = await household.deliver(raw or raw_message("Hello"), there, sender)
    assert not [outcome for outcome in outcomes if isinstance(outcome, BaseException)]


async def copied(world: Environment) -> list[tuple[str, str]]:
    """Who gets copies, and the senders of their envelopes."""
    asked = (
        select(col(QueueEntry.recipient), col(Submission.envelope_from))
        .join(Submission, col(Submission.id) == col(QueueEntry.submission_id))
        .where(col(Submission.copy_of).is_not(None))
        .order_by(col(QueueEntry.recipient))
    )
    return [(row.recipient, row.envelope_from) for row in await world.database.read(asked)]
