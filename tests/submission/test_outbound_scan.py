"""What scanners find in what users send: by a setting it is queued on no road."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import func, select

from graph.types import global_ids
from mail.envelope.dsn_parameters import DEFAULT_REPORTS
from mail.smtp.submission_server import SmtpSubmitter
from models.errors import Forbidden, ServiceUnavailable
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.submission.tables import Submission
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import Client, raw_message, receive
from tests.support.accounts.key_value_operations import limit
from tests.support.accounts.user_operations import run
from tests.support.mail_servers.scanner_servers import clamd_says, http, report, rude
from tests.support.servers.webhook_receiver import Receiver, receiving

SEND = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
submission { id } message { id } errors { __typename code message } } }"""
HELLO: dict[str, Any] = {"to": [{"address": "carol@example.net"}], "subject": "Hi", "text": "Yo"}


@pytest.fixture
async def filter_(world: Environment) -> AsyncIterator[Receiver]:
    """A server that answers as rspamd does."""
    async with receiving() as receiver:
        limit(world, rspamd=f"http://127.0.0.1:{receiver.port}", sent_scan="spam")
        yield receiver


async def send(client: Client, **more: Any) -> dict[str, Any]:
    answer: dict[str, Any] = (await client(SEND, input={**HELLO, **more}))["messageSend"]
    return answer


async def stored(world: Environment) -> tuple[int, int]:
    """How many submissions and messages there are."""
    counts = []
    for table in (Submission, Message):
        (row,) = await world.database.read(select(func.count().label("n")).select_from(table))
        counts.append(row.n)
    return counts[0], counts[1]


async def test_spam_is_not_sent_and_leaves_no_copy(ada: Client, filter_: Receiver) -> None:
    filter_.answer = report(15.0)
    answer = await send(ada)
    assert [each["code"] for each in answer["errors"]] == ["FORBIDDEN_OPERATION"]
    assert answer["errors"][0]["message"] == "it is not sent: it is spam"
    assert await stored(ada.world) == (0, 0)
    filter_.answer = report(14.9)
    assert not (await send(ada))["errors"]
    assert await stored(ada.world) == (1, 1)


async def test_the_filter_is_told_who_sends_to_whom(ada: Client, filter_: Receiver) -> None:
    filter_.answer = report(0.0)
    await send(ada, bcc=[{"address": "dan@example.net"}])
    (got,) = filter_.got
    assert got.headers["from"] == ada.address
    assert got.headers["user"] == ada.user.username
    assert b"Subject: Hi" in got.raw


async def test_a_draft_is_nobody_s_business(ada: Client, filter_: Receiver) -> None:
    filter_.answer = report(50.0)
    assert not (await send(ada, isDraft=True))["errors"]
    assert not filter_.got
    limit(ada.world, sent_scan="off")
    assert not (await send(ada))["errors"]
    assert not filter_.got


async def test_a_draft_that_is_submitted_is_looked_into(ada: Client, filter_: Receiver) -> None:
    filter_.answer = report(50.0)
    draft = (await send(ada, isDraft=True))["message"]
    done = await run(ada, "messageSubmit", "submission { id }", message=draft)
    assert [each["code"] for each in done["errors"]] == ["FORBIDDEN_OPERATION"]
    assert await stored(ada.world) == (0, 1)
    assert b"Subject: Hi" in filter_.got[0].raw
    filter_.answer = report(0.0)
    assert not (await run(ada, "messageSubmit", "submission { id }", message=draft))["errors"]


async def test_what_is_forwarded_by_hand_is_looked_into(ada: Client, filter_: Receiver) -> None:
    placed = await receive(ada, raw_message("Offer"))
    message = {"id": global_ids.encode("Message", placed.message_id)}
    given: dict[str, Any] = {"message": message, "addresses": ["carol@example.net"]}
    filter_.answer = report(50.0)
    done = await run(ada, "messageForward", "queueId", **given)
    assert [each["code"] for each in done["errors"]] == ["FORBIDDEN_OPERATION"]
    assert await stored(ada.world) == (0, 1)
    assert b"Subject: Offer" in filter_.got[0].raw
    filter_.answer = report(0.0)
    assert not (await run(ada, "messageForward", "queueId", **given))["errors"]


async def test_viruses_alone_are_looked_for(ada: Client, filter_: Receiver) -> None:
    filter_.answer = report(50.0)
    async with rude(clamd_says(b"stream: Win.Test FOUND\0")) as port:
        limit(ada.world, clamd=f"127.0.0.1:{port}", sent_scan="viruses")
        answer = await send(ada)
        assert answer["errors"][0]["message"] == "it is not sent: there is a virus in it"
    assert not filter_.got
    assert await stored(ada.world) == (0, 0)


async def test_while_it_is_down_mail_goes_or_waits(ada: Client, filter_: Receiver) -> None:
    filter_.answer = b"HTTP/1.1 500 Broken\r\nContent-Length: 0\r\n\r\n"
    assert not (await send(ada))["errors"]
    limit(ada.world, rspamd_down="defer")
    answer = await send(ada)
    assert [each["code"] for each in answer["errors"]] == ["UNAVAILABLE"]
    assert await stored(ada.world) == (1, 1)


async def test_submission_by_smtp_is_looked_into_as_well(ada: Client, filter_: Receiver) -> None:
    clerk, user = SmtpSubmissionService(ada.world), ada.user
    writer = SmtpSubmitter(user.id, user.username, user.auth_version, "192.0.2.7")
    letter = raw_message("Offer", From=f"Ada <{ada.address}>")
    filter_.answer = report(20.0)
    with pytest.raises(Forbidden):
        await clerk.submit(writer, letter, ada.address, [("carol@example.net", DEFAULT_REPORTS)])
    limit(ada.world, rspamd_down="defer")
    filter_.answer = http(b"{}")
    with pytest.raises(ServiceUnavailable):
        await clerk.submit(writer, letter, ada.address, [("carol@example.net", DEFAULT_REPORTS)])
    assert await stored(ada.world) == (0, 0)
    assert filter_.got[0].headers["ip"] == "192.0.2.7"
