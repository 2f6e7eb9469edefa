"""Reports that come back: whose they are, what they change, and what forged ones do not."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.mime.header_encoding import NamedAddress
from mail.smtp.mx_server import MxListener
from mail.smtp.smtp_server import SmtpListenerConfig
from models.events.journal import Change, ChangeKind
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission, SubmissionState
from tests.conftest import Client
from tests.support.mail_servers.dsn_servers import Reporter, fate, report, status
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.queue_worker import (
    State,
    deliveries,
    inbox,
    relay,
    send,
    settled,
    state,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import listening
from tests.support.mail_servers.smtp_client import connect

pytestmark = pytest.mark.usefixtures("examined")

TO = "ada@example.org"
Comes = Callable[..., Awaitable[str]]


@pytest.fixture
async def mx(world: Environment, tmp_path: Path) -> AsyncIterator[MxListener]:
    listener = MxListener(world, tmp_path / "spool", SmtpListenerConfig())
    await listener.start(host="127.0.0.1", port=0)
    yield listener
    await listener.close(1)


@pytest.fixture
async def comes(mx: MxListener) -> AsyncIterator[Comes]:
    """Hands a message over, as another server does."""
    neighbour: Neighbour = await connect(mx.port)

    async def come(raw: bytes, to: str = TO, sender: str = "") -> str:
        await neighbour.begin(to, sender=sender)
        neighbour.send(raw + b".\r\n")
        return await neighbour.hear()

    yield come
    await neighbour.close()


async def sent(ada: Client, world: Environment, *to: NamedAddress) -> tuple[int, str]:
    """A message that another server has; its key, and the id of the envelope."""
    elsewhere = Reporter()
    async with listening(elsewhere), working(world, relay(elsewhere)):
        key = await send(ada, *to)
        rows = await settled(world, key)
    assert {row.state for row in rows.values()} == {State.RELAYED}
    return key, elsewhere.envid()


async def header_id(world: Environment, key: int) -> str:
    (row,) = await world.database.read(
        select(col(Submission.header_id)).where(col(Submission.id) == key)
    )
    return str(row.header_id)


async def journal(world: Environment, user_id: int) -> list[str]:
    """What was told of submissions of the account."""
    asked = select(col(Change.facts)).where(
        col(Change.stream_id) == user_id, col(Change.kind) == ChangeKind.SUBMISSION_CHANGED
    )
    rows = await world.database.read(asked.order_by(col(Change.last)))
    return [row.facts["state"] for row in rows]


async def test_a_failure_with_the_proof_is_written_where_the_report_is_stored(
    ada: Client, world: Environment, comes: Comes
) -> None:
    key, envid = await sent(ada, world)
    told = status(fate("carol@example.net"), envid=envid)
    assert (await comes(report(told, "Subject: none"))).startswith("250")
    rows = await deliveries(world, key)
    carol, dave = rows["carol"], rows["dave"]
    assert (carol.state, carol.last_code, carol.last_response) == (
        State.BOUNCED,
        550,
        "5.1.1 No such user",
    )
    assert (carol.reported_by, carol.report_proven) == ("mx.example.net", True)
    assert carol.reported_at == world.now()
    assert (dave.state, dave.reported_at) == (State.RELAYED, None)
    assert await state(world, key) is SubmissionState.PARTIAL
    assert (await journal(world, ada.user.id))[-2:] == ["SENT", "PARTIAL"]
    (letter,) = await inbox(ada)
    assert letter.subject == "Undelivered Mail Returned to Sender"

    document = """
        query Sent($id: String!) {
          submission(by: {queueId: $id}) {
            state
            recipients { recipient state lastResponse reportedBy reportProven reportedAt }
          }
        }
    """
    queue_id = envid.partition(".")[0]
    shown = (await ada(document, id=queue_id))["submission"]
    assert shown["state"] == "PARTIAL"
    assert shown["recipients"][0] | {"reportedAt": None} == {
        "recipient": "carol@example.net",
        "state": "BOUNCED",
        "lastResponse": "550 5.1.1 No such user",
        "reportedBy": "mx.example.net",
        "reportProven": True,
        "reportedAt": None,
    }


async def test_an_envelope_id_that_a_relay_has_folded_is_known(
    ada: Client, world: Environment, comes: Comes
) -> None:
    key, envid = await sent(ada, world)
    told = status(
        fate("forwarded@other.example", original="CAROL@example.net"), envid=envid.upper()
    )
    await comes(report(told, "Subject: none"))
    carol = (await deliveries(world, key))["carol"]
    assert (carol.state, carol.report_proven) == (State.BOUNCED, True)


async def test_without_the_proof_it_is_told_as_unproven(
    ada: Client, world: Environment, comes: Comes
) -> None:
    key, _ = await sent(ada, world)
    returned = f"Message-ID: {await header_id(world, key)}"
    await comes(report(status(fate("dave@example.net")), returned))
    dave = (await deliveries(world, key))["dave"]
    assert (dave.state, dave.report_proven) == (State.BOUNCED, False)


async def test_the_proof_of_one_domain_is_none_for_another(
    ada: Client, world: Environment, comes: Comes
) -> None:
    to = [NamedAddress("carol@example.net"), NamedAddress("eve@example.com")]
    key, envid = await sent(ada, world, *to)  # that of the last envelope
    told = status(fate("carol@example.net"), fate("eve@example.com"), envid=envid)
    await comes(report(told, "Subject: none"))
    rows = await deliveries(world, key)
    assert sorted([rows["carol"].report_proven, rows["eve"].report_proven]) == [False, True]


async def test_delays_and_deliveries_are_told_and_go_no_way_back(
    ada: Client, world: Environment, comes: Comes
) -> None:
    key, envid = await sent(ada, world)

    async def after(action: str, code: str, said: str) -> tuple[Any, Any]:
        told = status(fate("carol@example.net", action, code, said), envid=envid)
        await comes(report(told, "Subject: none"))
        carol = (await deliveries(world, key))["carol"]
        return carol.state, carol.last_response

    assert await after("delayed", "4.4.1", "smtp; 450 4.4.1 Away") == (State.RELAYED, "4.4.1 Away")
    assert await after("relayed", "2.0.0", "smtp; 250 OK") == (State.RELAYED, "2.0.0 OK")
    assert await after("delivered", "2.1.5", "") == (State.DELIVERED, "2.1.5")
    assert await state(world, key) is SubmissionState.SENT
    assert await after("failed", "5.2.2", "smtp; 552 Full") == (State.BOUNCED, "5.2.2 Full")
    assert await after("delivered", "2.1.5", "") == (State.BOUNCED, "5.2.2 Full")
    assert await after("delayed", "4.4.1", "") == (State.BOUNCED, "5.2.2 Full")
    row = (await deliveries(world, key))["carol"]
    assert (row.next_at, row.lease) == (None, None)  # nothing is sent again
    assert await state(world, key) is SubmissionState.PARTIAL


async def test_what_is_proven_goes_before_what_is_not(
    ada: Client, world: Environment, comes: Comes
) -> None:
    key, envid = await sent(ada, world)
    returned = f"Message-ID: {await header_id(world, key)}"
    await comes(report(status(fate("carol@example.net")), returned))
    arrived = fate("carol@example.net", "delivered", "2.0.0", "")
    await comes(report(status(arrived, envid=envid), returned))
    carol = (await deliveries(world, key))["carol"]
    assert (carol.state, carol.report_proven) == (State.DELIVERED, True)
    await comes(report(status(fate("carol@example.net")), returned + "\nX: again"))
    carol = (await deliveries(world, key))["carol"]
    assert (carol.state, carol.report_proven) == (State.DELIVERED, True)


async def test_a_repeat_says_nothing_new(ada: Client, world: Environment, comes: Comes) -> None:
    _, envid = await sent(ada, world)
    told = status(fate("carol@example.net"), envid=envid)
    await comes(report(told, "Subject: none"))
    before = await journal(world, ada.user.id)
    await comes(report(told, "Subject: none"))
    await comes(report(told, "Subject: another"))
    assert await journal(world, ada.user.id) == before


# ---------------------------------------------------------------- forged, or of no use


async def unchanged(world: Environment, key: int) -> bool:
    rows = (await deliveries(world, key)).values()
    return {(row.state, row.reported_at) for row in rows} == {(State.RELAYED, None)}


async def test_another_account_changes_nothing(
    ada: Client, bob: Client, world: Environment, comes: Comes
) -> None:
    key, envid = await sent(ada, world)
    returned = f"Message-ID: {await header_id(world, key)}"
    told = status(fate("carol@example.net"), envid=envid)
    assert (await comes(report(told, returned), to=bob.address)).startswith("250")
    assert await unchanged(world, key)
    assert len(await inbox(bob)) == 1


async def test_what_is_not_about_it_changes_nothing(
    ada: Client, world: Environment, comes: Comes
) -> None:
    key, envid = await sent(ada, world)
    queue_id, _, proof = envid.partition(".")
    carol = fate("carol@example.net")
    for told, returned in (
        (status(fate("eve@example.net"), envid=envid), "X: no recipient"),
        (status(carol), "X: nothing that names it"),
        (status(carol, envid="x" * 20 + "." + proof), "X: another id"),
        (status(carol, envid="0" * 20 + "." + proof), "X: another id"),
        (status(carol, envid="' OR 1=1 --"), "Message-ID: <' OR 1=1 -- @x>"),
        (status(carol, envid="%"), "Message-ID: <%@%>"),
    ):
        assert (await comes(report(told, returned))).startswith("250")
        assert await unchanged(world, key)
    assert queue_id
    whole = report(status(carol, envid=envid), "Subject: none")
    await comes(whole, sender="carol@example.net")  # a report has no sender
    await comes(whole.replace(b"multipart/report", b"multipart/mixed"))
    assert await unchanged(world, key)


async def test_it_has_to_come_to_the_sender_of_the_envelope(
    ada: Client, world: Environment, comes: Comes
) -> None:
    key, envid = await sent(ada, world)
    async with world.write_session(ada.user.id) as session:
        this = update(Submission).where(col(Submission.id) == key)
        await session.exec(this.values(envelope_from="sales@example.org"))
    await comes(report(status(fate("carol@example.net"), envid=envid)))
    assert await unchanged(world, key)


async def test_what_waits_here_or_has_ended_here_is_known_better(
    ada: Client, world: Environment, comes: Comes
) -> None:
    key, envid = await sent(ada, world)
    for before in (State.PENDING, State.DEFERRED, State.BOUNCED, State.EXPIRED, State.CANCELLED):
        async with world.write_session(ada.user.id) as session:
            these = update(QueueEntry).where(col(QueueEntry.submission_id) == key)
            await session.exec(these.values(state=before))
        for action in ("failed", "delivered", "delayed"):
            told = status(fate("carol@example.net", action), envid=envid)
            await comes(report(told, f"Subject: {before} {action}"))
        rows = (await deliveries(world, key)).values()
        assert {(row.state, row.reported_at) for row in rows} == {(before, None)}
    async with world.write_session(ada.user.id) as session:
        these = update(QueueEntry).where(col(QueueEntry.submission_id) == key)
        await session.exec(these.values(state=State.RELAYED))


async def test_a_filter_that_drops_reports_drops_no_news(
    ada: Client, world: Environment, comes: Comes
) -> None:
    key, envid = await sent(ada, world)
    document = """
        mutation Drop($input: FilterCreateInput!) {
          filterCreate(input: $input) { errors { message } }
        }
    """
    drop = {"name": "No reports", "query": {"from": "MAILER-DAEMON"}, "action": {"delete": True}}
    answer = await ada(document, input=drop)
    assert answer["filterCreate"]["errors"] == []
    await comes(report(status(fate("carol@example.net"), envid=envid)))
    assert await inbox(ada) == []
    assert (await deliveries(world, key))["carol"].state is State.BOUNCED


async def test_the_trace_of_a_message_tells_of_it(
    ada: Client, root: Client, world: Environment, comes: Comes
) -> None:
    _, envid = await sent(ada, world)
    await comes(report(status(fate("carol@example.net"), envid=envid)))
    document = """
        query Way($id: String!) {
          messageTrace(queueId: $id) { event detail }
        }
    """
    shown = (await root(document, id=envid.partition(".")[0]))["messageTrace"]
    (step,) = [each for each in shown if each["event"] == "bounced"]
    assert "reported by mx.example.net (proven)" in step["detail"]
