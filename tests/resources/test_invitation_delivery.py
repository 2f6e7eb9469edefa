"""Invitations that arrive by SMTP, LMTP and submission, and the mail that resources refuse."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from mail.delivery import pipeline
from mail.envelope.resource_refusal import ONLY_INVITATIONS_TEXT
from mail.resources.invitation_answers import NOT_AUTHENTICATED_TEXT
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener
from mail.storage import message_trace
from mail.tls.server_tls import CertificateFiles
from models.errors import ServiceUnavailable
from models.runtime.environment import Environment
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import GraphQLClient, make_client, raw_message
from tests.support.case_loop import each_case
from tests.support.mail.inbound_authentication import use_dns_zone
from tests.support.mail.invitation_samples import SAMPLE_NAMES, invitation_sample
from tests.support.mail.invitations import (
    Invitation,
    authenticated,
    calendar_message,
    calendar_text_of_reply,
    cancellation,
    deliver_to_resource,
    list_busy_times,
    meeting,
    trust_front_server,
)
from tests.support.mail.signed_messages import make_rsa_key, sign_message
from tests.support.mail_servers.dns_zone_server import DnsZoneServer, make_dns_zone, run_dns_zone
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.mx_session import open_mx_session
from tests.support.mail_servers.queue_worker import (
    load_inbox_rows,
    load_queued_messages,
    poll_until,
    relay_settings,
    run_queue_worker,
    wait_for_messages,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp, start_tls
from tests.support.mail_servers.submission_client import (
    PASSWORD,
    sign_in_by_auth_plain,
    submit_message,
)
from tests.support.operations.resource_operations import create_resource

pytestmark = pytest.mark.usefixtures("verify_consistency")

ROOM = "room@example.org"


@pytest.fixture
async def dns_server() -> AsyncIterator[DnsZoneServer]:
    """A name server. far.example and lax.example send from here, plain.example signs."""
    zone = make_dns_zone(
        {
            "far.example": "v=spf1 ip4:127.0.0.1 -all",
            "_dmarc.far.example": "v=DMARC1; p=reject",
            "lax.example": "v=spf1 ip4:127.0.0.1 -all",
            "s._domainkey.plain.example": make_rsa_key()[1],
        }
    )
    async with run_dns_zone(zone):
        yield zone


@pytest.fixture
async def room(ada: GraphQLClient, root: GraphQLClient, dns_server: DnsZoneServer) -> str:
    """A room of ada's domain for one event at a time."""
    use_dns_zone(ada.environment, dns_server, dmarc_on_failure="ignore")
    return str((await create_resource(root, bookingLimit=1))["address"])


@pytest.fixture
async def mx(environment: Environment, tmp_path: Path) -> AsyncIterator[SmtpTestClient]:
    """A session with the MX listener."""
    async with open_mx_session(environment, tmp_path) as client:
        yield client


@pytest.fixture
async def far_server() -> AsyncIterator[FakeSmtpServer]:
    """The server that receives mail for other servers."""
    async with run_smtp_server(FakeSmtpServer()) as server:
        yield server


def refusal(reason: str) -> str:
    """The reply that refuses a message with this reason."""
    return f"550 5.7.1 Message rejected: {reason.removesuffix('.')}"


async def send(client: SmtpTestClient, raw: bytes, *to: str, sender: str) -> str:
    await client.start_data(*to, sender=sender)
    client.send_bytes(raw + b".\r\n")
    return await client.read_reply()


def from_domain(invitation: Invitation, domain: str) -> Invitation:
    """The invitation by an organizer of another domain."""
    organizer = f"carol@{domain}"
    events = tuple(replace(event, organizer=organizer) for event in invitation.events)
    return replace(invitation, events=events, author=organizer)


@pytest.mark.parametrize("program", SAMPLE_NAMES)
async def test_invitation_of_a_calendar_program_is_booked_and_answered_by_smtp(
    root: GraphQLClient,
    room: str,
    mx: SmtpTestClient,
    far_server: FakeSmtpServer,
    program: str,
) -> None:
    async with run_queue_worker(root.environment, relay_settings(far_server)):
        reply = await send(mx, invitation_sample(program, room), room, sender="carol@far.example")
        assert reply.startswith("250 2.")
        await wait_for_messages(far_server)
    times = await list_busy_times(root, room)
    assert times[0] == ("2030-01-07T09:00", "2030-01-07T10:00")
    assert len(times) == (1 if program == "thunderbird" else 10)
    (message,) = far_server.messages
    assert (message.sender, message.to) == ("<>", ["carol@far.example"])
    text = calendar_text_of_reply(message.raw)
    for part in ("METHOD:REPLY", "PARTSTAT=ACCEPTED", f"mailto:{room}", "SUMMARY:Weekly planning"):
        assert part in text
    assert b"Auto-Submitted: auto-replied\r\n" in message.raw


async def test_second_invitation_is_declined_by_mail(
    root: GraphQLClient, room: str, mx: SmtpTestClient
) -> None:
    for uid in ("a", "b"):
        raw = meeting(room, uid=uid).to_bytes()
        assert (await send(mx, raw, room, sender="carol@far.example")).startswith("250 2.")
    texts = [calendar_text_of_reply(raw) for raw in await load_queued_messages(root.environment)]
    assert ["PARTSTAT=ACCEPTED" in texts[0], "PARTSTAT=DECLINED" in texts[1]] == [True, True]
    assert "COMMENT:The resource is not free at this time." in texts[1]


async def test_only_an_authenticated_organizer_can_book(
    root: GraphQLClient, room: str, mx: SmtpTestClient
) -> None:
    cases: list[tuple[str, str, bool, bool]] = [
        ("far.example", "carol@far.example", False, True),  # SPF and DMARC
        ("far.example", "eve@lax.example", False, False),  # DMARC fails
        ("lax.example", "bounces@lax.example", False, True),  # SPF without a DMARC policy
        ("lax.example", "eve@far.example", False, False),  # SPF of another domain
        ("plain.example", "eve@far.example", True, True),  # DKIM without a DMARC policy
        ("plain.example", "eve@far.example", False, False),
    ]
    for case in each_case(cases):
        with case as (domain, sender, signed, is_booked):
            room = (await create_resource(root, bookingLimit=1))["address"]
            count = len(await load_queued_messages(root.environment))
            raw = from_domain(meeting(room), domain).to_bytes()
            reply = await send(
                mx, sign_message(raw, domain) if signed else raw, room, sender=sender
            )
            if is_booked:
                assert reply.startswith("250 2.")
            else:
                assert reply == refusal(NOT_AUTHENTICATED_TEXT)
            assert len(await list_busy_times(root, room)) == is_booked
            assert len(await load_queued_messages(root.environment)) - count == is_booked


async def test_each_passed_domain_in_ascii_or_unicode_authenticates(
    environment: Environment, root: GraphQLClient, room: str
) -> None:
    trust_front_server(environment)
    cases: list[str] = [
        "spf=pass smtp.mailfrom=xn--bcher-kva.example",
        "dkim=pass header.d=list.example; dkim=pass header.d=mail.xn--bcher-kva.example",
        "dkim=pass header.d=mail.bücher.example; dkim=pass header.d=list.example",
    ]
    for case in each_case(cases):
        with case as results:
            room = (await create_resource(root, bookingLimit=1))["address"]
            raw = authenticated(
                from_domain(meeting(room), "bücher.example").to_bytes(), "list.example"
            )
            raw = raw.replace(
                b"spf=pass smtp.mailfrom=list.example;\r\n dmarc=pass header.from=list.example",
                results.encode(),
            )
            assert await deliver_to_resource(environment, raw, room) == "ACCEPTED"
            assert len(await list_busy_times(root, room)) == 1


async def test_author_who_is_not_the_organizer_can_neither_book_nor_cancel(
    root: GraphQLClient, room: str, mx: SmtpTestClient
) -> None:
    event = meeting(room)
    assert (await send(mx, event.to_bytes(), room, sender="carol@far.example")).startswith("250 2.")
    for item in (meeting(room, uid="x"), cancellation(event)):
        raw = replace(item, author="eve@lax.example").to_bytes()
        reply = await send(mx, raw, room, sender="eve@lax.example")
        assert reply == refusal("The author of an invitation must be its organizer.")
    assert len(await list_busy_times(root, room)) == 1


async def test_other_mail_is_refused_with_the_reason(
    root: GraphQLClient, room: str, mx: SmtpTestClient
) -> None:
    cases: list[tuple[bytes, str]] = [
        (raw_message("Hello", From="carol@far.example"), ONLY_INVITATIONS_TEXT),
        (replace(meeting(ROOM), method="REPLY").to_bytes(), ONLY_INVITATIONS_TEXT),
        (replace(meeting(ROOM), method="PUBLISH").to_bytes(), ONLY_INVITATIONS_TEXT),
        (
            replace(meeting(ROOM), part_method="CANCEL").to_bytes(),
            "The method of the invitation differs between the MIME part and the calendar.",
        ),
        (
            replace(meeting(ROOM), calendar_lines="METHOD:CANCEL\n").to_bytes(),
            "The invitation has two methods.",
        ),
        (meeting("other@example.org").to_bytes(), "The resource is not an attendee of the event."),
        (
            replace(meeting(ROOM), headers={"Auto-Submitted": "auto-replied"}).to_bytes(),
            "The address does not accept automatic replies.",
        ),
        (
            calendar_message(b"BEGIN:VCALENDAR\r\nMETHOD:REQUEST\r\n", "carol@far.example", ROOM),
            "The invitation contains no event.",
        ),
        (
            replace(meeting(ROOM), events=(*meeting(ROOM).events, *meeting(ROOM, uid="2").events))
            .to_bytes(),
            "The invitation must be for one event with a UID.",
        ),
    ]  # fmt: skip
    for case in each_case(cases):
        with case as (raw, reason):
            assert await send(mx, raw, room, sender="carol@far.example") == refusal(reason)
            assert await list_busy_times(root, room) == []
            assert await load_queued_messages(root.environment) == []


async def test_null_sender_is_refused_at_rcpt(room: str, mx: SmtpTestClient) -> None:
    assert (await mx.run_command("MAIL FROM:<>")).startswith("250")
    assert await mx.run_command(f"RCPT TO:<{room}>") == refusal(ONLY_INVITATIONS_TEXT)
    assert (await mx.run_command("RCPT TO:<nobody@example.org>")).startswith("550 5.1.1")


async def test_message_to_a_user_and_a_resource_reaches_the_user(
    ada: GraphQLClient, room: str, mx: SmtpTestClient, far_server: FakeSmtpServer
) -> None:
    raw = raw_message("Hello", From="carol@far.example")
    async with run_queue_worker(ada.environment, relay_settings(far_server)):
        reply = await send(mx, raw, ada.address, room, sender="carol@far.example")
        assert reply.startswith("250 2.")
        await wait_for_messages(far_server)
    assert [row.subject for row in await load_inbox_rows(ada)] == ["Hello"]
    (report,) = far_server.messages
    assert (report.sender, report.to) == ("<>", ["carol@far.example"])
    assert b"Final-Recipient: rfc822; room@example.org" in report.raw
    assert ONLY_INVITATIONS_TEXT.removesuffix(".").encode() in report.raw


async def test_queue_repeats_an_invitation_with_its_authentication_results(  # noqa: PLR0913, PLR0917
    ada: GraphQLClient,
    root: GraphQLClient,
    room: str,
    mx: SmtpTestClient,
    far_server: FakeSmtpServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(*_: object) -> str:
        raise ServiceUnavailable("busy")

    raw = meeting(room).to_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "answer_invitation_and_return_trace_text", fail)
        reply = await send(mx, raw, ada.address, room, sender="carol@far.example")
    assert reply.startswith("250 2.")
    assert await list_busy_times(root, room) == []
    async with run_queue_worker(ada.environment, relay_settings(far_server)):
        await wait_for_messages(far_server)
    (answer,) = far_server.messages
    assert b"METHOD:REPLY" in answer.raw
    assert len(await list_busy_times(root, room)) == 1
    assert len(await load_inbox_rows(ada)) == 1


async def test_lmtp_needs_results_of_a_trusted_server(
    root: GraphQLClient, room: str, lmtp_client: SmtpTestClient
) -> None:
    raw = meeting(room).to_bytes()
    reply = await send(lmtp_client, raw, room, sender="carol@far.example")
    assert reply == refusal(NOT_AUTHENTICATED_TEXT)
    forged = authenticated(raw)
    reply = await send(lmtp_client, forged, room, sender="carol@far.example")
    assert reply == refusal(NOT_AUTHENTICATED_TEXT)
    trust_front_server(root.environment)
    reply = await send(lmtp_client, authenticated(raw), room, sender="carol@far.example")
    assert reply.startswith("250 2.")
    assert len(await list_busy_times(root, room)) == 1


async def test_forward_to_a_resource_is_refused(
    root: GraphQLClient, room: str, mx: SmtpTestClient
) -> None:
    document = """mutation ($input: AddressCreateInput!) { addressCreate(input: $input) {
      errors { message } } }"""
    forward = {"address": "rooms@example.org", "forwardTo": [room]}
    assert (await root(document, input=forward))["addressCreate"]["errors"] == []
    await mx.run_command("MAIL FROM:<carol@far.example>")
    reply = await mx.run_command("RCPT TO:<rooms@example.org>")
    assert reply == refusal(ONLY_INVITATIONS_TEXT)


async def test_user_books_by_submission_and_receives_the_reply(
    environment: Environment,
    root: GraphQLClient,
    http: object,
    far_server: FakeSmtpServer,
    tmp_path: Path,
) -> None:
    eve = await make_client(environment, http, "eve", password=PASSWORD)  # type: ignore[arg-type]
    room = (await create_resource(root, bookingLimit=1))["address"]
    authority = CertificateAuthority(tmp_path)
    listener = SubmissionListener(
        environment,
        tmp_path / "spool",
        SmtpListenerConfig(certificates=CertificateFiles(authority.issue_certificate())),
        SmtpSubmissionService(environment),
    )
    await listener.start(host="127.0.0.1", port=0)
    client = await connect_smtp(listener.port)
    await start_tls(client, authority.client_context())
    await sign_in_by_auth_plain(client, username="eve")
    own = from_domain(meeting(room), "example.org")
    own = replace(own, author=eve.address, events=(replace(own.events[0], organizer=eve.address),))
    foreign = replace(meeting(room, uid="2", organizer="bob@example.org"), author=eve.address)
    async with run_queue_worker(environment, relay_settings(far_server)):
        for number, raw in enumerate((own.to_bytes(), foreign.to_bytes()), 1):
            reply = await submit_message(client, raw, room, sender=eve.address)
            assert reply.startswith("250")

            async def has_answer(number: int = number) -> bool:
                return len(await load_inbox_rows(eve)) == number

            await poll_until(has_answer)
    await client.close()
    await listener.close(1)
    accepted, report = await load_inbox_rows(eve)
    assert (accepted.subject, report.content_type) == ("Accepted: Planning", "multipart/report")
    document = """query ($by: ResourceRef!) { resource(by: $by) {
      bookings { nodes { summary organizer { address } } } } }"""
    nodes = (await eve(document, by={"address": room}))["resource"]["bookings"]["nodes"]
    assert nodes == [{"summary": "Planning", "organizer": {"address": eve.address}}]
    assert far_server.messages == []


async def test_trace_tells_how_a_resource_answered(
    root: GraphQLClient, room: str, mx: SmtpTestClient
) -> None:
    raw = meeting(room).to_bytes()
    await send(mx, raw, room, sender="carol@far.example")
    await send(mx, raw_message("x", From="carol@far.example"), room, sender="carol@far.example")
    await message_trace.write_pending_trace_steps(root.environment)
    document = """query ($to: String!) { deliveryTrace(filter: {recipient: $to}) {
      nodes { event detail } } }"""
    nodes = (await root(document, to=room))["deliveryTrace"]["nodes"]
    details = {node["event"]: node["detail"] for node in nodes}
    assert details["AUTOREPLY_SENT"] == "ACCEPTED"
    assert details["REFUSED"] == f"NoInvitation: {ONLY_INVITATIONS_TEXT}"
