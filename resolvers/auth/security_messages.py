"""Messages to a user about changes that others made to credentials or mail routing."""

from typing import Any

from mail.compose import message_builder
from mail.compose.message_builder import Draft, HeaderLine
from mail.mime.header_encoding import Named
from mail.storage.message_insert import Place
from mail.storage.received_messages import read, stored
from mail.text.languages import closest
from models.auth.security_log import LETTER
from models.runtime.environment import World
from models.store.columns import Picked
from resolvers.admin.task_steps import Plan
from resolvers.auth.security_message_texts import ENGLISH, WORDS
from resolvers.context import Context
from resolvers.users.quota.quota_warnings import Ready, account_written_to, step

__all__ = ["KIND", "plan", "step"]

KIND = LETTER
LONGEST = 200  # characters of a value


async def plan(ctx: Context, order: dict[str, Any], checkpoint: dict[str, Any]) -> Plan:
    """Build and store the message of a task, unless an earlier step has done so.

    Returns an empty plan if the user no longer exists.
    """
    row = None if checkpoint else await account_written_to(ctx)
    if row is None:
        return Plan()
    draft = _draft(ctx.world, row, order)
    letter = await read(message_builder.build(draft))
    kept = await stored(ctx.world, row.tenant_id, letter)
    to = [person.address for person in draft.to]
    there = Place(row.id, row.box, ctx.world.now(), envelope_from="", envelope_to=to)
    return Plan(made=Ready(letter, kept, there))


def _draft(world: World, row: Picked, order: dict[str, Any]) -> Draft:
    """Return the message in the user's language."""
    words = closest(row.language, WORDS) or ENGLISH
    name = row.shown or row.username
    address = name if "@" in name else f"{name}@{world.options.hostname}"
    domain = address.rpartition("@")[2]
    facts = [
        (words.event, order["action"]),
        (words.by, order["by"]),
        (words.at, order["at"]),
        (words.ip, order["ip"]),
        *((key, str(value)) for key, value in sorted(order["detail"].items())),
    ]
    listed = "\n".join(f"{key}: {value[:LONGEST]}" for key, value in facts if value)
    guessed = order["by"] is None
    intro = words.guessed if guessed else words.intro
    said = [intro.format(address=address), listed, words.advice]
    return Draft(
        from_=Named(f"postmaster@{domain}", "Postmaster"),
        date=world.now(),
        message_id=message_builder.message_id(world.random(16), domain),
        to=[Named(address, row.name)],
        subject=words.guessed_subject if guessed else words.subject,
        text="\n\n".join(said) + "\n",
        headers=[HeaderLine("Auto-Submitted", "auto-generated")],  # RFC 3834, section 5
    )
