"""Received DSNs: the queue entries they change, and forged DSNs that change nothing."""

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from mail.mime.header_encoding import NamedAddress
from mail.smtp.mx_server import MxListener
from mail.smtp.smtp_server import SmtpListenerConfig
from models.events.event_types import SUBMISSION_EVENT_TYPES
from models.events.journal import Change
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission, SubmissionState
from tests.conftest import GraphQLClient
from tests.support.mail_servers.dsn_servers import (
    DsnSmtpServer,
    delivery_status_part,
    make_dsn_message,
    recipient_status_fields,
)
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.queue_worker import (
    State,
    load_inbox_rows,
    load_queue_entries,
    load_submission_state,
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import run_smtp_server
from tests.support.mail_servers.smtp_client import connect_smtp

pytestmark = pytest.mark.usefixtures("verify_consistency")

ADA_ADDRESS = "ada@example.org"
DeliverByMx = Callable[..., Awaitable[str]]


@pytest.fixture
async def mx(environment: Environment, tmp_path: Path) -> AsyncIterator[MxListener]:
    listener = MxListener(environment, tmp_path / "spool", SmtpListenerConfig())
    await listener.start(host="127.0.0.1", port=0)
    yield listener
    await listener.close(1)


@pytest.fixture
async def deliver_by_mx(mx: MxListener) -> AsyncIterator[DeliverByMx]:
    """Return a function that delivers a message as another server does."""
    neighbour: SmtpTestClient = await connect_smtp(mx.port)

    async def deliver(raw: bytes, to: str = ADA_ADDRESS, sender: str = "") -> str:
        await neighbour.start_data(to, sender=sender)
        neighbour.send_bytes(raw + b".\r\n")
        return await neighbour.read_reply()

    yield deliver
    await neighbour.close()


async def relay_message(
    ada: GraphQLClient, environment: Environment, *to: NamedAddress
) -> tuple[int, str]:
    """Send a message to a relay. Return the submission ID and the envelope ID."""
    relay_server = DsnSmtpServer()
    async with (
        run_smtp_server(relay_server),
        run_queue_worker(environment, relay_settings(relay_server)),
    ):
        submission_id = await queue_message(ada, *to)
        rows = await wait_until_tried(environment, submission_id)
    assert {row.state for row in rows.values()} == {State.RELAYED}
    return submission_id, relay_server.last_envelope_id()


async def stored_message_id(environment: Environment, submission_id: int) -> str:
    (row,) = await environment.database.read(
        select(col(Submission.header_id)).where(col(Submission.id) == submission_id)
    )
    return str(row.header_id)


async def journaled_states(environment: Environment, user_id: int) -> list[str]:
    """Submission states in the journal of the account."""
    statement = select(col(Change.facts)).where(
        col(Change.stream_id) == user_id, col(Change.type).in_(SUBMISSION_EVENT_TYPES)
    )
    rows = await environment.database.read(statement.order_by(col(Change.last)))
    return [row.facts["state"] for row in rows]


async def test_proven_failure_dsn_changes_entry_and_is_stored(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    submission_id, envid = await relay_message(ada, environment)
    status_text = delivery_status_part(
        recipient_status_fields("carol@example.net"), envelope_id=envid
    )
    assert (await deliver_by_mx(make_dsn_message(status_text, "Subject: none"))).startswith("250")
    rows = await load_queue_entries(environment, submission_id)
    carol, dave = rows["carol"], rows["dave"]
    assert (carol.state, carol.last_code, carol.last_response) == (
        State.BOUNCED,
        550,
        "5.1.1 No such user",
    )
    assert (carol.dsn_reporter, carol.dsn_verified) == ("mx.example.net", True)
    assert carol.reported_at == environment.now()
    assert (dave.state, dave.reported_at) == (State.RELAYED, None)
    assert await load_submission_state(environment, submission_id) is SubmissionState.PARTIAL
    assert (await journaled_states(environment, ada.user.id))[-2:] == ["SENT", "PARTIAL"]
    (stored_dsn,) = await load_inbox_rows(ada)
    assert stored_dsn.subject == "Undelivered Mail Returned to Sender"

    document = """
        query Sent($id: String!) {
          submission(by: {queueId: $id}) {
            state
            recipients { recipient state lastResponse dsnReporter dsnVerified reportedAt }
          }
        }
    """
    queue_id = envid.partition(".")[0]
    submission = (await ada(document, id=queue_id))["submission"]
    assert submission["state"] == "PARTIAL"
    assert submission["recipients"][0] | {"reportedAt": None} == {
        "recipient": "carol@example.net",
        "state": "BOUNCED",
        "lastResponse": "550 5.1.1 No such user",
        "dsnReporter": "mx.example.net",
        "dsnVerified": True,
        "reportedAt": None,
    }


async def test_envelope_id_in_capitals_is_matched(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    submission_id, envid = await relay_message(ada, environment)
    status_text = delivery_status_part(
        recipient_status_fields("forwarded@other.example", original_recipient="CAROL@example.net"),
        envelope_id=envid.upper(),
    )
    await deliver_by_mx(make_dsn_message(status_text, "Subject: none"))
    carol = (await load_queue_entries(environment, submission_id))["carol"]
    assert (carol.state, carol.dsn_verified) == (State.BOUNCED, True)


async def test_dsn_without_proof_is_recorded_as_unproven(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    submission_id, _ = await relay_message(ada, environment)
    returned_header = f"Message-ID: {await stored_message_id(environment, submission_id)}"
    await deliver_by_mx(
        make_dsn_message(
            delivery_status_part(recipient_status_fields("dave@example.net")), returned_header
        )
    )
    dave = (await load_queue_entries(environment, submission_id))["dave"]
    assert (dave.state, dave.dsn_verified) == (State.BOUNCED, False)


async def test_proof_is_not_valid_for_another_domain(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    to = [NamedAddress("carol@example.net"), NamedAddress("eve@example.com")]
    # The envelope ID of the last envelope.
    submission_id, envid = await relay_message(ada, environment, *to)
    status_text = delivery_status_part(
        recipient_status_fields("carol@example.net"),
        recipient_status_fields("eve@example.com"),
        envelope_id=envid,
    )
    await deliver_by_mx(make_dsn_message(status_text, "Subject: none"))
    rows = await load_queue_entries(environment, submission_id)
    assert sorted([rows["carol"].dsn_verified, rows["eve"].dsn_verified]) == [False, True]


async def test_dsns_update_the_entry_and_never_revert_a_failure(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    submission_id, envid = await relay_message(ada, environment)

    async def state_after_dsn(action: str, code: str, diagnostic: str) -> tuple[Any, Any]:
        status_text = delivery_status_part(
            recipient_status_fields("carol@example.net", action, code, diagnostic),
            envelope_id=envid,
        )
        await deliver_by_mx(make_dsn_message(status_text, "Subject: none"))
        carol = (await load_queue_entries(environment, submission_id))["carol"]
        return carol.state, carol.last_response

    assert await state_after_dsn("delayed", "4.4.1", "smtp; 450 4.4.1 Away") == (
        State.RELAYED,
        "4.4.1 Away",
    )
    assert await state_after_dsn("relayed", "2.0.0", "smtp; 250 OK") == (State.RELAYED, "2.0.0 OK")
    assert await state_after_dsn("delivered", "2.1.5", "") == (State.DELIVERED, "2.1.5")
    assert await load_submission_state(environment, submission_id) is SubmissionState.SENT
    assert await state_after_dsn("failed", "5.2.2", "smtp; 552 Full") == (
        State.BOUNCED,
        "5.2.2 Full",
    )
    assert await state_after_dsn("delivered", "2.1.5", "") == (State.BOUNCED, "5.2.2 Full")
    assert await state_after_dsn("delayed", "4.4.1", "") == (State.BOUNCED, "5.2.2 Full")
    row = (await load_queue_entries(environment, submission_id))["carol"]
    assert (row.next_at, row.lease) == (None, None)  # nothing is sent again
    assert await load_submission_state(environment, submission_id) is SubmissionState.PARTIAL


async def test_proven_dsn_overrides_an_unproven_one(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    submission_id, envid = await relay_message(ada, environment)
    returned_header = f"Message-ID: {await stored_message_id(environment, submission_id)}"
    await deliver_by_mx(
        make_dsn_message(
            delivery_status_part(recipient_status_fields("carol@example.net")), returned_header
        )
    )
    recipient_fields = recipient_status_fields("carol@example.net", "delivered", "2.0.0", "")
    await deliver_by_mx(
        make_dsn_message(delivery_status_part(recipient_fields, envelope_id=envid), returned_header)
    )
    carol = (await load_queue_entries(environment, submission_id))["carol"]
    assert (carol.state, carol.dsn_verified) == (State.DELIVERED, True)
    await deliver_by_mx(
        make_dsn_message(
            delivery_status_part(recipient_status_fields("carol@example.net")),
            returned_header + "\nX: again",
        )
    )
    carol = (await load_queue_entries(environment, submission_id))["carol"]
    assert (carol.state, carol.dsn_verified) == (State.DELIVERED, True)


async def test_repeated_dsn_records_no_change(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    _, envid = await relay_message(ada, environment)
    status_text = delivery_status_part(
        recipient_status_fields("carol@example.net"), envelope_id=envid
    )
    await deliver_by_mx(make_dsn_message(status_text, "Subject: none"))
    before = await journaled_states(environment, ada.user.id)
    await deliver_by_mx(make_dsn_message(status_text, "Subject: none"))
    await deliver_by_mx(make_dsn_message(status_text, "Subject: another"))
    assert await journaled_states(environment, ada.user.id) == before


async def is_unchanged(environment: Environment, submission_id: int) -> bool:
    rows = (await load_queue_entries(environment, submission_id)).values()
    return {(row.state, row.reported_at) for row in rows} == {(State.RELAYED, None)}


async def test_dsn_to_another_account_changes_nothing(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    submission_id, envid = await relay_message(ada, environment)
    returned_header = f"Message-ID: {await stored_message_id(environment, submission_id)}"
    status_text = delivery_status_part(
        recipient_status_fields("carol@example.net"), envelope_id=envid
    )
    assert (
        await deliver_by_mx(make_dsn_message(status_text, returned_header), to=bob.address)
    ).startswith("250")
    assert await is_unchanged(environment, submission_id)
    assert len(await load_inbox_rows(bob)) == 1


async def test_unrelated_or_forged_dsn_changes_nothing(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    submission_id, envid = await relay_message(ada, environment)
    queue_id, _, proof = envid.partition(".")
    recipient_fields = recipient_status_fields("carol@example.net")
    for status_text, returned_header in (
        (
            delivery_status_part(recipient_status_fields("eve@example.net"), envelope_id=envid),
            "X: no recipient",
        ),
        (delivery_status_part(recipient_fields), "X: nothing that names it"),
        (
            delivery_status_part(recipient_fields, envelope_id="x" * 20 + "." + proof),
            "X: another id",
        ),
        (
            delivery_status_part(recipient_fields, envelope_id="0" * 20 + "." + proof),
            "X: another id",
        ),
        (
            delivery_status_part(recipient_fields, envelope_id="' OR 1=1 --"),
            "Message-ID: <' OR 1=1 -- @x>",
        ),
        (delivery_status_part(recipient_fields, envelope_id="%"), "Message-ID: <%@%>"),
    ):
        assert (await deliver_by_mx(make_dsn_message(status_text, returned_header))).startswith(
            "250"
        )
        assert await is_unchanged(environment, submission_id)
    assert queue_id
    valid_dsn = make_dsn_message(
        delivery_status_part(recipient_fields, envelope_id=envid), "Subject: none"
    )
    await deliver_by_mx(valid_dsn, sender="carol@example.net")  # a DSN has an empty sender
    await deliver_by_mx(valid_dsn.replace(b"multipart/report", b"multipart/mixed"))
    assert await is_unchanged(environment, submission_id)


async def test_dsn_must_arrive_at_the_envelope_sender(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    submission_id, envid = await relay_message(ada, environment)
    async with environment.write_session(ada.user.id) as session:
        statement = update(Submission).where(col(Submission.id) == submission_id)
        await session.exec(statement.values(envelope_from="sales@example.org"))
    await deliver_by_mx(
        make_dsn_message(
            delivery_status_part(recipient_status_fields("carol@example.net"), envelope_id=envid)
        )
    )
    assert await is_unchanged(environment, submission_id)


async def test_dsn_does_not_change_pending_or_finished_entries(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    submission_id, envid = await relay_message(ada, environment)
    for entry_state in (
        State.PENDING,
        State.DEFERRED,
        State.BOUNCED,
        State.EXPIRED,
        State.CANCELLED,
    ):
        async with environment.write_session(ada.user.id) as session:
            statement = update(QueueEntry).where(col(QueueEntry.submission_id) == submission_id)
            await session.exec(statement.values(state=entry_state))
        for action in ("failed", "delivered", "delayed"):
            status_text = delivery_status_part(
                recipient_status_fields("carol@example.net", action), envelope_id=envid
            )
            await deliver_by_mx(make_dsn_message(status_text, f"Subject: {entry_state} {action}"))
        rows = (await load_queue_entries(environment, submission_id)).values()
        assert {(row.state, row.reported_at) for row in rows} == {(entry_state, None)}
    async with environment.write_session(ada.user.id) as session:
        statement = update(QueueEntry).where(col(QueueEntry.submission_id) == submission_id)
        await session.exec(statement.values(state=State.RELAYED))


async def test_dsn_deleted_by_a_filter_still_changes_the_entry(
    ada: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    submission_id, envid = await relay_message(ada, environment)
    document = """
        mutation Drop($input: FilterCreateInput!) {
          filterCreate(input: $input) { errors { message } }
        }
    """
    filter_input = {
        "name": "No reports",
        "query": {"from": "MAILER-DAEMON"},
        "action": {"delete": True},
    }
    payload = await ada(document, input=filter_input)
    assert payload["filterCreate"]["errors"] == []
    await deliver_by_mx(
        make_dsn_message(
            delivery_status_part(recipient_status_fields("carol@example.net"), envelope_id=envid)
        )
    )
    assert await load_inbox_rows(ada) == []
    assert (await load_queue_entries(environment, submission_id))["carol"].state is State.BOUNCED


async def test_message_trace_shows_the_dsn(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, deliver_by_mx: DeliverByMx
) -> None:
    _, envid = await relay_message(ada, environment)
    await deliver_by_mx(
        make_dsn_message(
            delivery_status_part(recipient_status_fields("carol@example.net"), envelope_id=envid)
        )
    )
    document = """
        query Way($id: String!) {
          deliveryTrace(filter: {queueId: $id}, orderBy: AT_ASC) { nodes { event detail } }
        }
    """
    steps = (await root(document, id=envid.partition(".")[0]))["deliveryTrace"]["nodes"]
    (step,) = [trace_step for trace_step in steps if trace_step["event"] == "BOUNCED"]
    assert "reported by mx.example.net (proven)" in step["detail"]
