"""Filters at delivery: loaded and asked for all recipients of a message at once.

What they say is the default of rules (mail/delivery/delivery_plan.py). Beside that they are
counted, and posted to
webhooks, in the unit that stores the message, and answer behind it.
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

MATCHED = "filter.matched"  # the type of what a webhook is told


@prepared
def _active(dialect: str) -> Select[*tuple[Any, ...]]:
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
    """What the filters of each recipient say, in their order.

    One statement for all of them; none, and nothing, where no account has filters.
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
    """What the filters of an account say; a bug of ours keeps no mail from being stored."""
    try:
        return filter_compiler.decided(rules, looked)
    except Exception:
        log.exception("filters could not be run", extra={"user": user})
        return NOTHING


def rule_of(world: World, row: Picked) -> Rule:
    """A filter as it is run, its targets with their passwords."""
    try:
        known = forward_targets.opened(world, row.id, row.relays)
    except Sealed:  # the relay refuses it, and the queue reports that
        log.warning("a relay's password cannot be opened", extra={"filter": row.id})
        known = {}
    to = [Target(row.id, shown, known.get(shown, shown)) for shown in row.targets]
    return Rule(row.id, row.query, row.action, to)


# ---------------------------------------------------------------- in the unit that stores it


def noted(turn: Turn, user_id: int, said: Decision, letter: Letter, placed: Placed | None) -> None:
    """Count the filters that acted, and hand the message to their webhooks."""
    turn.send([(_COUNTED, {"id": key, "user": user_id}) for key in said.matched])
    if said.webhooks:
        _post(turn, user_id, said, _facts(said, letter, placed))


def done(said: Decision) -> Decision:
    """The decision, behind the unit that has noted it."""
    return replace(said, matched=(), webhooks=())


def _post(turn: Turn, user_id: int, said: Decision, body: dict[str, Any]) -> None:
    """Put it before those of the webhooks that are the account's still, and switched on."""
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
    """What is told of a message: who may read it asks for it by its id."""
    told = {"message": placed.message_id if placed else None, "size": letter.size}
    objects = [{"id": key, **told} for key in said.matched]
    return {"kind": "FILTER_MATCHED", "domain": None, "objects": objects, "origin": None}


# ---------------------------------------------------------------- behind it


async def answer(
    world: World, incoming: sieve_vacation.Incoming, said: Decision, boxes: Boxes
) -> None:
    """Answer as the first filter says that does, under the guards of all automatic answers."""
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
