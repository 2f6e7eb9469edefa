"""Deliver an incoming message, step by step.

1. Read the message and check its sender, or use the results of a trusted server
(mail/inbound/sender_verification.py). Our results are added to the header.

2. Scan it (mail/scanners).

3. Merge recipients that lead to the same account.

4. Compute the spam verdict of each account (mail/spam/verdict.py). Spam goes to Junk, is refused or
is quarantined (mail/delivery/quarantine.py). A quarantined message causes no reply and no copy. The
label of a subaddress can select another mailbox (mail/delivery/subaddress_mailbox.py).

5. Run the filters and then the script of each account (mail/delivery/filter_execution.py,
mail/delivery/delivery_plan.py).

6. Store it in each account, with delivery header fields (mail/storage/delivery_headers.py) unless
it was fetched, and encrypted if the account requires it. A full mailbox does not affect other
accounts. Then forward it and reply (mail/delivery/plan_execution.py,
mail/delivery/account_forwards.py).

7. Enqueue the copies of BCC rules (mail/delivery/recipient_rewrites.py).

8. Enqueue forwards of addresses, and retries for accounts that could not take a forwarded message.
Spam is not forwarded. Train the spam filter for training addresses. Send the automatic replies of
forwarding addresses.

9. Write the delivery trace (mail/delivery/trace_steps.py) and return one result per recipient: an
exception if any part of it is not durable.

Recipients are accepted before, in mail/recipients/recipient_routes.py. On return everything that
was not refused is durable.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from mail import autoreply
from mail.authentication.forwarding_hosts import forwarder_of
from mail.delivery import (
    account_forwards,
    delivery_plan,
    filter_execution,
    plan_execution,
    quarantine,
    recipient_rewrites,
    subaddress_mailbox,
    success_dsn,
    trace_steps,
)
from mail.delivery.delivery_plan import Ruled
from mail.delivery.recipient_rewrites import Came
from mail.envelope.client import Client
from mail.envelope.local_recipient import Recipient
from mail.inbound import dsn_parser, sender_verification, spam_check
from mail.inbound.incoming_message import Key, Mail
from mail.inbound.scan_rejection import Unwanted, check_onward, turn_away
from mail.queue.redirect import send_on
from mail.recipients.recipient_routes import Answering, Onward, Person, Taken
from mail.scanners import look
from mail.scanners.rspamd_training import teach
from mail.storage.message_insert import Placed
from models.errors import Refused
from models.runtime.environment import World


async def receive(
    world: World,
    source: bytes | Path,
    sender: str,
    client: Client | None = None,
    came: str | None = None,
) -> Mail:
    """Read a message from an SMTP client, or from a trusted server if there is no client.

    The header fields about spam and authentication are used only from a trusted server.
    `content_digest` is the SHA-256 of the message as received. Raises as sender_verification.
    """
    forwarder = await forwarder_of(world, client.ip) if client else None
    forwarded = forwarder is not None
    whole, letter = await sender_verification.received(
        world, source, sender, client, forwarded=forwarded
    )
    letter = replace(letter, came=came or letter.came)
    trusted = forwarder is not None and not forwarder.filter_spam
    return Mail(whole, letter, sender, handed=client is None, client=client, unfiltered=trusted)


async def deliver(world: World, mail: Mail, taken: Sequence[Taken]) -> list[object]:
    """Deliver a message to accepted recipients; return one result each, an exception if refused."""
    trace_steps.began(world, mail.way, mail.sender, taken)
    await trace_steps.turned_away(world, mail.way, taken)
    await look(world, mail, taken)
    people: dict[Key, Person] = {}
    for each in taken:
        for person in each.people:
            people.setdefault(_key(person.to), person)
            mail.wishes.setdefault(_key(person.to), each.wish)
    everybody = list(people.values())
    if mail.fetched is None:
        mail.report = await dsn_parser.found(mail.source, mail.letter, mail.sender)
    await _store(world, mail, everybody)
    await _copy(world, mail, taken, everybody)
    outcomes = [await _settle(world, mail, each) for each in taken]
    for each, outcome in zip(taken, outcomes, strict=True):
        if each.answering is not None and not isinstance(outcome, BaseException):
            await _answer(world, mail, each.answering)
    trace_steps.ended(world, mail.way, mail.letter, taken, outcomes)
    return outcomes


def _key(to: Recipient) -> Key:
    return to.user_id, to.mailbox_id


async def _store(world: World, mail: Mail, people: Sequence[Person]) -> None:
    """Deliver the message to each account and note the results in `incoming.results`."""
    alone = asyncio.Semaphore()  # bounds memory: one copy with its own bytes at a time

    async def perform(each: Ruled) -> Placed | None:
        to, verdict = each.judged.to, each.judged.verdict
        trace_steps.judged(world, mail.way, to, verdict)
        if why := quarantine.reason(world, mail.letter, verdict):
            await quarantine.hold(world, mail, to, why)
            trace_steps.held(world, mail.way, to, why)
            return None
        await turn_away(world, mail, each.judged)
        placed = await plan_execution.performed(world, mail, each, alone)
        sent = await account_forwards.after(world, mail, each.judged, placed)
        trace_steps.stored(world, mail.way, to, placed, sent)
        return placed

    to = [person.to for person in people]
    verdicts = await spam_check.judged(world, mail.letter, mail.sender, to, handed=mail.handed)
    judged = [await subaddress_mailbox.filed(world, each) for each in verdicts]
    said = await filter_execution.decisions(world, mail, judged)
    ruled = await delivery_plan.ruled(world, mail, judged, said)
    outcomes = await asyncio.gather(*map(perform, ruled), return_exceptions=True)
    mail.placed |= dict(zip(map(_key, to), outcomes, strict=True))


async def _copy(world: World, mail: Mail, taken: Sequence[Taken], people: Sequence[Person]) -> None:
    """Enqueue the copies of BCC rules. An error fails the delivery, so that it is repeated."""
    if not mail.copied:
        return
    reached = [person.to for person in people if isinstance(mail.placed[_key(person.to)], Placed)]
    named = [each.address for each in taken] + [to.instead for to in reached if to.instead]
    came = Came(mail.source, mail.letter, mail.sender, named, mail.submission_id)
    await recipient_rewrites.copies_of_received(world, came, reached)


async def _settle(world: World, mail: Mail, taken: Taken) -> object:
    """Enqueue the forwards of one recipient and return its result."""
    outcomes: list[object] = []
    wish = success_dsn.passed_on(taken)
    onward = list(taken.onward)
    if taken.people and account_forwards.is_spam(
        world, mail.letter, mail.sender, handed=mail.handed
    ):
        onward = []
    for person in taken.people:
        outcome = mail.placed[_key(person.to)]
        later = isinstance(outcome, Refused) and not isinstance(outcome, Unwanted)
        if person.by is not None and later:
            onward.append(person.by)
        else:
            outcomes.append(outcome)
    outcomes += [await _sent_on(world, mail, replace(each, wish=wish)) for each in onward]
    if taken.learn is not None:
        outcomes.append(await teach(world, mail, spam=taken.learn))
    refused = [each for each in outcomes if isinstance(each, BaseException)]
    return refused[0] if refused else next(iter(outcomes), None)


async def _answer(world: World, mail: Mail, to: Answering) -> None:
    """Send the automatic reply of a forwarding address."""
    whole, letter = (mail.source, mail.letter), (mail.letter, mail.sender)
    spam = await spam_check.unwanted(world, letter, to, handed=mail.handed)
    outcome = await autoreply.after(world, whole, to, mail.sender, spam=spam)
    trace_steps.answered(world, mail.way, to, outcome)


async def _sent_on(world: World, mail: Mail, onward: Onward) -> object:
    """Enqueue a forward. Returns it, or the error."""
    spam = account_forwards.is_spam(world, mail.letter, mail.sender, handed=mail.handed)
    try:
        check_onward(mail)
        if spam and not (onward.returns or onward.relayed):
            raise account_forwards.Held("spam is not sent on")
        came = mail.came, mail.sender
        await send_on(world, mail.source, came, onward, mail.results, mail.letter)
    except Exception as error:  # noqa: BLE001 - the error is the result of this recipient
        return error
    trace_steps.sent_on(world, mail.way, onward)
    return onward
