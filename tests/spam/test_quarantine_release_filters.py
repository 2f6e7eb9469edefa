"""What is let in goes where filters, and the script, of its account want it."""

from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from mail.delivery.quarantine import QuarantineReason
from models.runtime.environment import Environment
from models.users.tables import User
from tests.conftest import Client, raw_message
from tests.support.accounts.user_operations import change
from tests.support.mail.queued_deliveries import queued_envelopes
from tests.support.mail.stored_messages import message_flags, subjects_by_mailbox
from tests.support.operations.domain_operations import done
from tests.support.operations.filter_operations import listed, made
from tests.support.operations.quarantine_operations import (
    CAROL,
    RELEASE,
    SPAM,
    TRY,
    come,
    held,
    hold,
    set_options,
)
from tests.support.operations.sieve_operations import active_script_error, put
from tests.support.operations.trace_operations import message_id_header, trace_events, trace_steps
from tests.support.sample_mutations.mutation_call import Call

pytestmark = pytest.mark.usefixtures("examined")
DAVE = "dave@far.example"


async def let_in(client: Client, *keys: str, **given: Any) -> list[str]:
    """Let these in; where each lies."""
    answer, errors = await done(client, RELEASE, ids=keys, **given)
    assert errors == []
    return [one["mailbox"]["path"] for one in answer["messages"]]


async def counts(client: Client) -> list[int]:
    return [one["matchCount"] for one in (await listed(client))["nodes"]]


async def test_filters_sort_and_mark_it_and_count_it(ada: Client, bob: Client) -> None:
    await ada('mutation { mailboxCreate(input: {paths: ["A", "B"]}) { errors { code } } }')
    sorting = {"mailbox": {"path": "A"}, "copyTo": [{"path": "B"}], "seen": True, "labels": ["n"]}
    await made(ada, {"subject": "bill"}, sorting)
    keys = [await hold(ada, "Bill"), await hold(ada, "Other"), await hold(bob, "Bill")]
    _, errors = await done(ada, TRY, ids=keys[:1], options={"validateOnly": True})
    assert (errors, await counts(ada), await subjects_by_mailbox(ada.world, ada)) == ([], [0], {})
    assert await let_in(ada, *keys[:2]) == ["A", "INBOX"]
    assert await let_in(bob, keys[2]) == ["INBOX"]
    assert await subjects_by_mailbox(ada.world, ada) == {
        "A": ["Bill"],
        "B": ["Bill"],
        "INBOX": ["Other"],
    }
    assert (await message_flags(ada, "A"), await counts(ada)) == ([["\\Seen", "n"]], [1])


async def test_a_script_files_and_edits_it_but_nobody_is_answered_or_notified(
    ada: Client, world: Environment
) -> None:
    await put(
        ada,
        'require ["fileinto", "mailbox", "vacation", "enotify", "imap4flags"];\n'
        'fileinto :create :flags "\\\\Flagged" "Let in";\n'
        'vacation "I am away.";\nnotify "mailto:dave@far.example";\n',
    )
    await made(ada, {}, {"reply": {"text": "Later"}})
    assert await let_in(ada, await hold(ada, "Bill")) == ["Let in"]
    assert (await message_flags(ada, "Let in"), await queued_envelopes(world)) == (
        [["\\Flagged"]],
        [],
    )


@pytest.mark.parametrize(
    "script",
    ["discard;", 'require "reject"; reject "No.";', 'require "fileinto"; fileinto "Nowhere";'],
)
async def test_what_a_script_would_throw_away_or_refuse_is_kept(ada: Client, script: str) -> None:
    await put(ada, script)
    assert await let_in(ada, await hold(ada, "Bill")) == ["INBOX"]


async def test_what_filters_would_delete_or_call_spam_is_kept(ada: Client) -> None:
    await made(ada, {"subject": "one"}, {"delete": True})
    await made(ada, {"subject": "two"}, {"spam": True})
    keys = [await hold(ada, "One"), await hold(ada, "Two")]
    set_options(ada.world, spam_quarantine=1)  # nor is it held again
    assert await let_in(ada, *keys) == ["INBOX", "INBOX"]
    assert await held(ada.world) == []


async def test_a_script_that_breaks_keeps_it_and_is_shown(ada: Client, world: Environment) -> None:
    await put(ada, 'require "include"; include "missing"; discard;')
    assert await let_in(ada, await hold(ada, "Bill")) == ["INBOX"]
    assert "missing" in await active_script_error(world)


async def test_what_is_sent_on_instead_is_so_in_the_same_unit(
    ada: Client, world: Environment
) -> None:
    await put(ada, f'redirect "{DAVE}";')
    first, large = await hold(ada, "Bill"), await hold(ada, "Other")
    _, errors = await done(ada, TRY, ids=[first], options={"validateOnly": True})
    assert (errors, await queued_envelopes(world)) == ([], [])
    assert await let_in(ada, first) == []
    assert (
        [to for _, to in await queued_envelopes(world)],
        await subjects_by_mailbox(world, ada),
    ) == ([DAVE], {})
    assert len(await held(world)) == 1
    async with world.write_session() as session:
        this = update(User).where(col(User.id) == ada.user.id)
        await session.exec(this.values(forwards=1))
    _, errors = await done(ada, RELEASE, ids=[large])
    assert (errors[0]["code"], errors[0]["path"], errors[0]["index"]) == (
        "RATE_LIMITED", ["ids"], 0,
    )  # fmt: skip
    assert (len(await held(world)), len(await queued_envelopes(world))) == (1, 1)


async def test_an_account_that_forwards_does_so_but_never_a_virus(
    ada: Client, over: Client, world: Environment
) -> None:
    assert (await change(ada, targets=[DAVE]))[1] == []
    good, virus = (
        await hold(ada, "Bill"),
        await hold(ada, "Ill", QuarantineReason(0.0, (), "Eicar")),
    )
    assert await let_in(ada, good) == ["INBOX"]
    assert [to for _, to in await queued_envelopes(world)] == [DAVE]
    await put(ada, 'redirect "eve@far.example";')
    _, errors = await done(over, TRY, ids=[virus])
    assert errors == []
    assert [to for _, to in await queued_envelopes(world)] == [DAVE]
    assert await subjects_by_mailbox(world, ada) == {"INBOX": ["Bill", "Ill"]}


async def test_one_that_has_been_here_before_is_not_sent_on(
    ada: Client, world: Environment
) -> None:
    assert (await change(ada, targets=[DAVE]))[1] == []
    await put(ada, f'redirect "{DAVE}";')
    key = await hold(ada, raw_message("Round", **{"Delivered-To": ada.address}))
    assert (await let_in(ada, key), await queued_envelopes(world)) == (["INBOX"], [])


async def test_the_way_of_what_was_held_goes_on(
    ada: Client, root: Client, world: Environment
) -> None:
    set_options(world, spam_quarantine=50)
    raw = raw_message("Offer", **SPAM)
    await come(world, ada, raw=raw)
    (item,) = await held(world)
    assert await trace_events(root, queueId=item.queue_id) == ["accepted", "judged", "held"]
    key = global_ids.encode("QuarantineItem", item.id)
    _, errors = await done(ada, TRY, ids=[key], options={"validateOnly": True})
    assert (errors, len(await trace_events(root, queueId=item.queue_id))) == ([], 3)
    await put(ada, f'redirect "{DAVE}"; keep;')
    await let_in(ada, key)
    for given in ({"queueId": item.queue_id}, {"messageId": message_id_header(raw)}):
        found = [step for step in await trace_steps(root, **given) if step[2] == ada.address]
        assert [event for _, event, _, _ in found] == [
            "accepted", "judged", "held", "released", "stored", "sent on",
        ]  # fmt: skip
        assert (found[3][0], found[3][3]) == ("SPAM", "by its owner")


async def test_rules_of_the_domain_still_copy_it(
    ada: Client, root: Client, world: Environment
) -> None:
    rule = {"match": ada.address, "bccTo": "copies@else.example", "direction": "RECIPIENT"}
    assert (await Call("bccRuleCreate", rule)(root))["errors"] == []
    await put(ada, "discard;")
    assert await let_in(ada, await hold(ada, "Bill", sender=CAROL)) == ["INBOX"]
    assert await queued_envelopes(world) == [(CAROL, "copies@else.example")]
