"""Handing a stored message on once more to where it was sent on to as it came."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from models.messages.tables import Message
from models.users.tables import User
from tests.conftest import Client, raw_message
from tests.support.accounts.shared_mailboxes import mutate, share, team
from tests.support.accounts.user_operations import change
from tests.support.mail.forwarding_addresses import add_forwarding_address, allow_private_targets
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.lmtp_transactions import ACCEPTED_REPLIES, send_transaction
from tests.support.mail_servers.queue_worker import relay, settled, wait_for_messages, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.domain_operations import done
from tests.support.operations.filter_operations import made
from tests.support.operations.filter_operations import remove as filter_removed
from tests.support.operations.quarantine_operations import RELEASE, hold
from tests.support.operations.send_operations import MESSAGE_FORWARD, forward_errors
from tests.support.servers.webhook_receiver import Receiver, receiving
from tests.support.stores.counter_check import rows

DAVE, EVE = "dave@far.example", "eve@far.example"
pytestmark = pytest.mark.usefixtures("examined")


async def again(client: Client, key: str, **more: Any) -> Any:
    given = {"message": {"id": key}, **more}
    return (await client(MESSAGE_FORWARD, input=given))["messageForward"]


async def targets(client: Client, *to: str, **more: Any) -> None:
    assert (await change(client, targets=list(to), **more))[1] == []


async def put(client: Client, neighbour: Neighbour, raw: bytes | None = None) -> str:
    """The id of a message that a neighbour has brought."""
    assert (
        await send_transaction(neighbour, raw or raw_message("Onward"), client.address)
        == ACCEPTED_REPLIES
    )
    return await newest(client)


async def newest(client: Client) -> str:
    asked = select(col(Message.id)).where(col(Message.user_id) == client.user.id)
    found = await client.world.database.read(asked.order_by(col(Message.id)))
    return str(global_ids.encode("Message", found[-1].id))


async def mine(client: Client) -> list[tuple[Any, ...]]:
    """What an account has handed in: to whom, and by which relay or page."""
    words = "SELECT recipient, via FROM deliveries WHERE user_id = :user ORDER BY id"
    return [tuple(row) for row in await rows(client.world, words, user=client.user.id)]


async def listed(client: Client, key: str) -> list[tuple[str, ...]]:
    """The original targets, as a message shows them."""
    asked = "query ($id: ID!) { message(by: {id: $id}) { forwardTargets { seq type value } } }"
    message = (await client(asked, id=key))["message"]
    return [tuple(each.values()) for each in message["forwardTargets"]]


def shown(answer: Any) -> list[tuple[str, ...]]:
    assert answer["errors"] == []
    return [tuple(each.values()) for each in answer["forwarded"]]


async def test_it_goes_to_all_of_them_or_to_one(ada: Client, neighbour: Neighbour) -> None:
    await made(ada, {}, {"targets": [EVE, DAVE]})
    await targets(ada, "DAVE@far.example", "frank@far.example")
    key = await put(ada, neighbour)
    await targets(ada)  # where it went then is what counts
    (rule,) = await rows(ada.world, "SELECT id FROM filters")
    await filter_removed(ada, global_ids.encode("Filter", rule[0]))
    every = [("1", "mail", EVE), ("2", "mail", DAVE), ("3", "mail", "frank@far.example")]
    assert await listed(ada, key) == every
    assert shown(await again(ada, key)) == every
    assert await mine(ada) == [(address, None) for _, _, address in every]
    assert shown(await again(ada, key, target=2)) == every[1:2]
    assert (await mine(ada))[3:] == [(DAVE, None)]
    assert shown(await again(ada, key, target=None, addresses=None)) == every


async def test_without_any_nothing_is_done(ada: Client, neighbour: Neighbour) -> None:
    key = await put(ada, neighbour)
    await targets(ada, DAVE)  # this message was not sent on
    for more in ({}, {"target": 1}):
        answer = await again(ada, key, **more)
        assert (answer["queueId"], shown(answer)) == (None, [])
    key = await put(ada, neighbour, raw_message("Second"))
    answer = await again(ada, key, target=2)
    assert (answer["queueId"], shown(answer)) == (None, [])
    assert await mine(ada) == []
    flags = "{ viewer { user { messages { nodes { flags } } } } }"
    nodes = (await ada(flags))["viewer"]["user"]["messages"]["nodes"]
    assert [each["flags"] for each in nodes] == [[], []]


async def test_what_says_too_much_or_too_little_is_refused(
    ada: Client, neighbour: Neighbour
) -> None:
    await targets(ada, DAVE)
    key = await put(ada, neighbour)
    for more, refusal in (
        ({"target": 1, "addresses": [EVE]}, ("VALIDATION", ["target"], None)),
        ({"target": 0}, ("VALIDATION", ["target"], None)),
        ({"target": -1}, ("VALIDATION", ["target"], None)),
        ({"addresses": []}, ("VALIDATION", ["addresses"], None)),
    ):
        assert forward_errors(await again(ada, key, **more)) == [refusal]
    assert await mine(ada) == []


@asynccontextmanager
async def outside(ada: Client) -> AsyncGenerator[tuple[Server, Receiver]]:
    """A relay that wants a password, a page, and a worker that goes to both."""
    world = allow_private_targets(ada.world)
    server = Server()
    server.features = {"auth_require_tls": False, "authenticator": server.authenticate}
    async with (
        listening(server, tls=True) as there,
        receiving() as page,
        working(world, relay(there)),
    ):
        yield there, page


async def test_a_relay_and_a_page_get_it_with_the_password_that_is_not_shown(
    ada: Client, neighbour: Neighbour
) -> None:
    raw = raw_message("Relayed")
    async with outside(ada) as (there, page):
        host = f"127.0.0.1:{there.port}"
        await targets(ada, f"smtps://us:secret@{host}", page.url)
        key = await put(ada, neighbour, raw)
        await page.wait(1)
        answer = await again(ada, key)
        assert shown(answer) == [
            ("1", "relay", f"smtps://us:***@{host}"),
            ("2", "http", page.url),
        ]
        asked = "SELECT id FROM submissions WHERE user_id IS NOT NULL"
        ((submission,),) = await rows(ada.world, asked)
        await settled(ada.world, submission)
        await wait_for_messages(there, 2)  # the first is the one that went as it came
    assert await mine(ada) == [
        (ada.address, f"smtps://us:***@{host}"),
        (ada.address, page.url),
    ]
    assert set(there.logins) == {"us"}
    (mail,) = (mail for mail in there.mails if mail.sender == ada.address)
    assert mail.to == [ada.address]
    assert mail.raw.endswith(raw)
    got = page.got[-1]
    assert got.raw.endswith(raw)
    assert got.headers["x-envelope-to"] == ada.address
    document = """query ($by: SubmissionRef!) { submission(by: $by) {
        state recipients { recipient state lastResponse } } }"""
    found = (await ada(document, by={"queueId": answer["queueId"]}))["submission"]
    assert found["state"] == "SENT"
    assert "secret" not in str(found)


async def test_a_password_that_is_not_known_any_more_is_told(
    ada: Client, neighbour: Neighbour
) -> None:
    given = "smtps://us:secret@relay.example"
    rule = await made(ada, {}, {"targets": [given]})
    await targets(ada, DAVE)
    key = await put(ada, neighbour)
    assert shown(await again(ada, key))[0] == ("1", "relay", "smtps://us:***@relay.example")
    await filter_removed(ada, rule["id"])
    assert forward_errors(await again(ada, key)) == [("CONFLICT", ["message"], None)]
    assert forward_errors(await again(ada, key, target=1)) == [("CONFLICT", ["target"], None)]
    assert shown(await again(ada, key, target=2)) == [("2", "mail", DAVE)]
    await targets(ada, given)  # whose it is now does not matter
    assert len(shown(await again(ada, key))) == 2


async def test_whoever_reads_it_too_does_not_use_its_owners_targets(
    ada: Client, bob: Client, neighbour: Neighbour
) -> None:
    await targets(ada, DAVE)
    await team(ada)
    assert await share(ada, bob, "READ") == []
    key = await put(ada, neighbour)
    assert forward_errors(await again(bob, key)) == [("NOT_FOUND", ["message"], None)]
    moved = await mutate(
        ada, "messageMove", "movedCount", select={"ids": [key]}, to={"path": "Team"}
    )
    assert moved["errors"] == []
    for more in ({}, {"target": 1}, {"target": 9}):
        assert forward_errors(await again(bob, key, **more)) == [
            ("FORBIDDEN_OPERATION", ["message"], None)
        ]
    assert (await listed(ada, key), await listed(bob, key)) == ([("1", "mail", DAVE)], [])
    assert shown(await again(bob, key, addresses=[EVE])) == [("1", "mail", EVE)]
    assert await mine(ada) == []


async def test_a_copy_of_ones_own_knows_them_and_anothers_does_not(
    ada: Client, bob: Client, neighbour: Neighbour
) -> None:
    await targets(ada, DAVE)
    key = await put(ada, neighbour)
    await mutate(bob, "mailboxCreate", paths=["Team"])
    assert await share(bob, ada, "READ", "INSERT") == []
    theirs = {"id": global_ids.encode("Mailbox", (await bob.box("Team")).id)}
    for to in ({"path": "Sent"}, theirs):
        done_ = await mutate(ada, "messageCopy", "copiedCount", select={"ids": [key]}, to=to)
        assert done_["errors"] == []
    assert shown(await again(ada, await newest(ada))) == [("1", "mail", DAVE)]
    assert shown(await again(bob, await newest(bob))) == []


async def test_what_is_to_be_encrypted_does_not_go_out_as_it_is(
    ada: Client, neighbour: Neighbour
) -> None:
    await targets(ada, DAVE)
    key = await put(ada, neighbour)
    async with ada.world.write_session() as session:
        await session.exec(update(User).values(encrypt_forwarded=True))
    assert forward_errors(await again(ada, key)) == [("CONFLICT", ["message"], None)]
    assert shown(await again(ada, key, addresses=[DAVE])) == [("1", "mail", DAVE)]
    async with ada.world.write_session() as session:
        await session.exec(update(Message).values(encrypted=True))
    assert shown(await again(ada, key)) == [("1", "mail", DAVE)]


async def test_an_address_that_is_ones_own_by_now_is_left_out(
    ada: Client, root: Client, neighbour: Neighbour
) -> None:
    await targets(ada, DAVE, "soon@example.org")
    key = await put(ada, neighbour)
    document = """mutation ($input: AddressCreateInput!) {
        addressCreate(input: $input) { errors { code } } }"""
    given = {"address": "soon@example.org", "user": {"username": "ada"}}
    assert (await root(document, input=given))["addressCreate"]["errors"] == []
    assert shown(await again(ada, key)) == [("1", "mail", DAVE)]
    assert shown(await again(ada, key, target=2)) == []


async def test_what_another_address_forwards_to_is_no_target_of_the_account(
    ada: Client, neighbour: Neighbour
) -> None:
    await add_forwarding_address(ada.world, "list", ada.address, DAVE)
    assert (
        await send_transaction(neighbour, raw_message("List"), "list@example.org")
        == ACCEPTED_REPLIES
    )
    assert shown(await again(ada, await newest(ada))) == []


async def test_a_script_has_targets_too(ada: Client, neighbour: Neighbour) -> None:
    document = """mutation ($input: SieveScriptPutInput!) {
        sieveScriptPut(input: $input) { errors { code message } } }"""
    script = f'require "copy"; redirect :copy "{EVE}";'
    given = {"name": "s", "content": script, "activate": True}
    assert (await ada(document, input=given))["sieveScriptPut"]["errors"] == []
    await targets(ada, DAVE)
    key = await put(ada, neighbour)
    assert shown(await again(ada, key)) == [("1", "mail", EVE), ("2", "mail", DAVE)]


async def test_what_could_not_be_sent_on_is_no_original_target(
    ada: Client, root: Client, neighbour: Neighbour
) -> None:
    await targets(ada, DAVE)
    assert (await change(root, ada, forwards=1))[1] == []
    assert shown(await again(ada, await put(ada, neighbour))) == [("1", "mail", DAVE)]
    assert shown(await again(ada, await put(ada, neighbour, raw_message("Two")))) == []


async def test_what_was_held_knows_where_it_went_as_it_was_let_in(ada: Client) -> None:
    await made(ada, {}, {"targets": [EVE]})
    await targets(ada, DAVE)
    held = await hold(ada, "Offer")
    assert (await done(ada, RELEASE, ids=[held]))[1] == []
    assert shown(await again(ada, await newest(ada))) == [
        ("1", "mail", EVE), ("2", "mail", DAVE),
    ]  # fmt: skip


async def test_a_repeat_after_a_crash_is_noted_once(ada: Client, neighbour: Neighbour) -> None:
    await targets(ada, DAVE)
    raw = raw_message("Again")
    for _ in range(2):
        assert await send_transaction(neighbour, raw, ada.address) == ACCEPTED_REPLIES
    assert shown(await again(ada, await newest(ada))) == [("1", "mail", DAVE)]


async def test_copies_by_rules_do_not_go_by_the_relay(
    ada: Client, root: Client, neighbour: Neighbour
) -> None:
    document = """mutation ($input: BccRuleCreateInput!) {
        bccRuleCreate(input: $input) { errors { code message } } }"""
    given = {"match": ada.address, "bccTo": "boss@example.org", "direction": "SENDER"}
    assert (await root(document, input=given))["bccRuleCreate"]["errors"] == []
    await targets(ada, "smtps://us:secret@relay.example")
    key = await put(ada, neighbour)
    assert len(shown(await again(ada, key))) == 1
    asked = """SELECT d.recipient, d.via FROM deliveries d JOIN submissions s
        ON s.id = d.submission_id WHERE s.copy_of IS NOT NULL"""
    assert await rows(ada.world, asked) == [("boss@example.org", None)]
