"""Run filters at delivery, for all recipients of a message together.

The filter result is the default of the delivery plan (mail/delivery/delivery_plan.py). Match counts
and webhook deliveries are written in the transaction that stores the message. Replies are sent
after it.
"""

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Select, select, update
from sqlmodel import col

from mail.autoreply import Came, Silence, sieve_vacation, stands, written
from mail.autoreply import Rule as Answer
from mail.autoreply.reply_sender import ANSWERS
from mail.filters import filter_compiler
from mail.filters.filter_compiler import Looked, Rule
from mail.filters.filter_result import NOTHING, Decision, Target
from mail.filters.script_environment import Boxes
from mail.inbound.incoming_message import Mail
from mail.inbound.spam_check import Judged
from mail.recipients import forward_targets
from mail.runtime import inline_or_thread
from mail.sieve import Vacation
from mail.storage.message_insert import Letter, Placed
from models.events.wakeups import WEBHOOKS
from models.filters.tables import Filter
from models.notifications.webhooks import TRIED_FOR, PostState, Webhook, put
from models.runtime.environment import Turn, World
from models.runtime.secret_box import Sealed
from models.store.columns import Picked, picked, table_of
from models.store.prepared_statements import Prepared, among, number, prepared
from models.users.tables import User

log = logging.getLogger(__name__)

MATCHED = "filter.matched"  # event type of the webhook


@prepared
def _active(dialect: str) -> Select[*tuple[Any, ...]]:
    """Select the active filters of `users` in their order."""
    return (
        select(*picked(Filter, {"id", "user_id", "query", "action", "targets", "relays"}))
        .where(among(dialect, col(Filter.user_id), "users"), col(Filter.active))
        .order_by(col(Filter.order), col(Filter.id))
    )


_COUNTED = Prepared(
    update(table_of(Filter))
    .where(col(Filter.id) == number("id"), col(Filter.user_id) == number("user"))
    .values(match_count=col(Filter.match_count) + 1)
)


async def decisions(world: World, mail: "Mail", judged: Sequence[Judged]) -> list[Decision]:
    """Return the filter result of each recipient, in the same order.

    Runs one SQL statement. Returns an empty list, without a statement, if no account has filters.
    """
    users = [each.to.user_id for each in judged if each.to.filtered]
    if not users:
        return []
    asked = _active(world.database.dialect)
    rules: defaultdict[int, list[Rule]] = defaultdict(list)
    for row in await world.database.find(asked, {"users": users}):
        rules[row.user_id].append(rule_of(world, row))
    looked = Looked(mail.read)
    works = {("filters", user): partial(_decided, user, it, looked) for user, it in rules.items()}
    found = await inline_or_thread.done(works, near=mail.near)
    return [found.get(("filters", each.to.user_id), NOTHING) for each in judged]


def _decided(user: int, rules: Sequence[Rule], looked: Looked) -> Decision:
    """Return the filter result of an account. On an unexpected error the filters have no effect."""
    try:
        return filter_compiler.decided(rules, looked)
    except Exception:
        log.exception("filters could not be run", extra={"user": user})
        return NOTHING


def rule_of(world: World, row: Picked) -> Rule:
    """Return a compiled filter from its row, with the secret URLs of its targets."""
    try:
        known = forward_targets.opened(world, row.id, row.relays)
    except Sealed:  # the relay refuses the sign-in, and the queue reports it
        log.warning("a relay's password cannot be opened", extra={"filter": row.id})
        known = {}
    to = [Target(row.id, shown, known.get(shown, shown)) for shown in row.targets]
    return Rule(row.id, row.query, row.action, to)


def noted(turn: Turn, user_id: int, said: Decision, letter: Letter, placed: Placed | None) -> None:
    """Count the filters that matched and insert the deliveries of their webhooks."""
    turn.send([(_COUNTED, {"id": key, "user": user_id}) for key in said.matched])
    if said.webhooks:
        _post(turn, user_id, said, _facts(said, letter, placed))


def done(said: Decision) -> Decision:
    """Return the filter result without matches and webhooks that are already recorded."""
    return replace(said, matched=(), webhooks=())


def _post(turn: Turn, user_id: int, said: Decision, body: dict[str, Any]) -> None:
    """Insert webhook deliveries for the active webhooks of the account."""
    hooks = (
        select(col(Webhook.id), col(User.username))
        .join(User, col(User.id) == col(Webhook.user_id))
        .where(
            col(Webhook.id).in_(said.webhooks),
            col(Webhook.user_id) == user_id,
            col(Webhook.active),
        )
    )
    now, number = turn.world.now(), turn.stands(user_id)
    rows = [
        {
            "id": turn.world.key(),
            "webhook_id": row.id,
            "stream_id": user_id,
            "number": number,
            "event": f"evt_{user_id}_{turn.world.key()}-filter",
            "type": MATCHED,
            "at": now,
            "body": {**body, "user": {"id": user_id, "username": row.username}},
            "state": PostState.WAITING,
            "attempt": 0,
            "expires_at": now + TRIED_FOR,
        }
        for row in turn.connection.execute(hooks)
    ]
    if rows:
        put(turn.connection, now, rows)
        turn.bells.add(WEBHOOKS)


def _facts(said: Decision, letter: Letter, placed: Placed | None) -> dict[str, Any]:
    """Return the event body. The message is named only by ID."""
    told = {"message": placed.message_id if placed else None, "size": letter.size}
    objects = [{"id": key, **told} for key in said.matched]
    return {"kind": "FILTER_MATCHED", "domain": None, "objects": objects, "origin": None}


async def answer(
    world: World, incoming: sieve_vacation.Incoming, said: Decision, boxes: Boxes
) -> None:
    """Send the reply of the first matching filter, under the rules of all automatic replies."""
    reply, to, letter = said.replies[0], incoming.to, incoming.letter
    named = [each.address for each in (*letter.facts.to, *letter.facts.cc)]
    if not await stands(world, (to.user_id, to.address_id), to.address, named):
        ANSWERS.add(Silence.NOT_ADDRESSED.outcome)
        return
    came = Came(incoming.sender, to.address, letter.facts.subject)
    rule = Answer(subject=reply.subject, text=reply.text, html=reply.html)
    words = written(rule, came)
    if isinstance(words, Silence):
        return
    action = Vacation(
        to=incoming.sender,
        handle=filter_compiler.handle(reply.filter_id),
        seconds=int(world.options.autoreply_interval.total_seconds()),
        subject=words.subject,
        reason=filter_compiler.entity(reply.text, reply.html),
        mime=bool(reply.html),
    )
    await sieve_vacation.after(world, incoming, action, boxes)
