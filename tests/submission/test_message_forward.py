"""Handing a stored message on."""

from typing import Any

import pytest
from sqlalchemy import update

from graph.types import global_ids
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import Scope
from models.users.tables import User
from tests.conftest import Client, make_key, raw_message, receive
from tests.support.mail_servers.queue_worker import inbox, relay, settled, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.bulk_operations import keys, nodes
from tests.support.operations.send_operations import MESSAGE_FORWARD, forward_errors
from tests.support.stores.counter_check import journal, reached, rows

pytestmark = pytest.mark.usefixtures("examined")


async def forward(client: Client, key: str, *to: str, **more: Any) -> Any:
    given = {"message": {"id": key}, "addresses": list(to), **more}
    return (await client(MESSAGE_FORWARD, input=given))["messageForward"]


async def put(client: Client, raw: bytes) -> str:
    """The id of a message that has come."""
    return global_ids.encode("Message", (await receive(client, raw)).message_id)


async def test_a_message_goes_on_byte_for_byte(
    ada: Client, bob: Client, world: Environment
) -> None:
    raw = raw_message("kept", body="\r\n".join(["as it is. "] * 9), X_Odd="  spaced  ")
    key = await put(ada, raw)
    last = await reached(world, ada.user.id)
    async with listening(Server()) as there, working(world, relay(there)):
        answer = await forward(ada, key, "carol@example.net", bob.address, "CAROL@example.net")
        assert answer["errors"] == []
        assert [tuple(one.values()) for one in answer["forwarded"]] == [
            ("1", "mail", "carol@example.net"),
            ("2", "mail", bob.address),
        ]
        ((submission,),) = await rows(world, "SELECT id FROM submissions")
        await settled(world, submission)
    (mail,) = there.mails
    assert mail.raw.endswith(raw)
    assert [each.subject for each in await inbox(bob)] == ["kept"]
    document = """query ($by: SubmissionRef!) { submission(by: $by) {
        state envelopeFrom message { id } recipients { recipient } } }"""
    found = (await ada(document, by={"queueId": answer["queueId"]}))["submission"]
    assert (found["state"], found["envelopeFrom"], found["message"]) == (
        "SENT", ada.address, {"id": key},
    )  # fmt: skip
    (kept,) = await nodes(ada)
    assert kept["flags"] == ["$Forwarded"]
    kinds = {kind for kind, _ in await journal(world, ada.user.id, last)}
    assert kinds == {ChangeKind.SUBMISSION_CHANGED, ChangeKind.MESSAGE_UPDATED}


async def test_what_is_deleted_meanwhile_goes_out_all_the_same(
    ada: Client, world: Environment
) -> None:
    key = await put(ada, raw_message("gone"))
    await forward(ada, key, "carol@example.net")
    document = """mutation ($input: MessageDeleteInput!) {
        messageDelete(input: $input) { deletedCount } }"""
    await ada(document, input={"select": {"ids": [key]}, "permanent": True})
    ((submission,),) = await rows(world, "SELECT id FROM submissions")
    async with listening(Server()) as there, working(world, relay(there)):
        await settled(world, submission)
    (mail,) = there.mails
    assert b"Subject: gone" in mail.raw


@pytest.mark.parametrize(
    ("to", "refusal"),
    [
        ([], ("VALIDATION", ["addresses"], None)),
        (["carol@example.net", "nobody"], ("VALIDATION", ["addresses"], 1)),
        (["carol@example.net\r\nRCPT TO:<x@y>"], ("VALIDATION", ["addresses"], 0)),
        (["ada@example.org"], ("VALIDATION", ["addresses"], 0)),
        ([f"x{n}@example.net" for n in range(401)], ("LIMIT_REACHED", ["addresses"], None)),
    ],
)
async def test_wrong_addresses_are_refused(
    ada: Client, world: Environment, to: list[str], refusal: tuple[Any, ...]
) -> None:
    key = await put(ada, raw_message("a"))
    assert forward_errors(await forward(ada, key, *to)) == [refusal]
    assert await rows(world, "SELECT count(*) FROM submissions") == [(0,)]
    assert (await nodes(ada))[0]["flags"] == []


async def test_only_what_is_ones_own_and_no_draft_goes_on(
    ada: Client, bob: Client, world: Environment
) -> None:
    theirs = await put(bob, raw_message("b"))
    for client, key in ((ada, theirs), (ada, global_ids.encode("Message", 7))):
        assert forward_errors(await forward(client, key, "carol@example.net")) == [
            ("NOT_FOUND", ["message"], None)
        ]
    document = """mutation ($input: MessageUploadInput!) { messageUpload(input: $input) {
        message { id } } }"""
    given = {"mailbox": {"path": "Drafts"}, "draft": True, "subject": "d", "text": "x"}
    draft = (await ada(document, input=given))["messageUpload"]["message"]["id"]
    assert forward_errors(await forward(ada, draft, "carol@example.net")) == [
        ("CONFLICT", ["message"], None)
    ]
    assert await rows(world, "SELECT count(*) FROM submissions") == [(0,)]


async def test_what_goes_in_circles_is_held(ada: Client) -> None:
    for hops, code in ((29, []), (30, [("CONFLICT", ["message"])])):
        trace = "".join(f"Received: from h{n}\r\n by h{n + 1}; x\r\n" for n in range(hops))
        key = await put(ada, trace.encode() + raw_message(f"hops {hops}"))
        answer = await forward(ada, key, "carol@example.net")
        assert [(e["code"], e["path"]) for e in answer["errors"]] == code


async def test_recipients_count_as_of_all_that_is_sent(ada: Client, world: Environment) -> None:
    key = await put(ada, raw_message("a"))
    async with world.write_session(ada.user.id) as session:
        await session.exec(update(User).values(recipients=2))
    assert (await forward(ada, key, "c@example.net", "d@example.net"))["errors"] == []
    answer = await forward(ada, key, "e@example.net")
    assert [e["code"] for e in answer["errors"]] == ["RATE_LIMITED"]
    async with world.write_session(ada.user.id) as session:
        await session.exec(update(User).values(recipients=None))
    assert len(await rows(world, "SELECT id FROM submissions")) == 1


async def test_one_key_forwards_once_and_a_trial_not_at_all(
    ada: Client, world: Environment
) -> None:
    key = await put(ada, raw_message("a"))
    trial = await forward(ada, key, "c@example.net", options={"validateOnly": True})
    assert trial["errors"] == []
    first = await forward(ada, key, "c@example.net", options={"idempotencyKey": "k"})
    again = await forward(ada, key, "c@example.net", options={"idempotencyKey": "k"})
    assert (again["queueId"], again["replayed"]) == (first["queueId"], True)
    assert await rows(world, "SELECT count(*) FROM submissions") == [(1,)]


async def test_forwarding_needs_its_scope(ada: Client, world: Environment) -> None:
    await receive(ada)
    (key,) = await keys(ada)
    scopes = [Scope.MAIL]
    secret = await make_key(world, "mail", user_id=ada.user.id, role=ada.user.role, scopes=scopes)
    client = Client(ada.http, world, ada.user, secret)
    assert [e["code"] for e in (await forward(client, key, "c@example.net"))["errors"]] == [
        "FORBIDDEN"
    ]
