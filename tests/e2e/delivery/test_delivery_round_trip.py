"""Tests of the main path: messages are delivered, reported to subscribers, read, and sent."""

import asyncio
import base64
from contextlib import AsyncExitStack
from typing import Any

import httpx

from tests.conftest import raw_message
from tests.support.mail.multipart_message import (
    ATTACHMENTS,
    BINARY_CONTENT,
    HTML_TEXT,
    LARGE_CONTENT,
    PLAIN_TEXT,
    build_message,
)
from tests.support.mail.trace_header_lines import without_trace_fields
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer as Hop
from tests.support.mail_servers.smtp_and_dns_servers import run_smtp_server
from tests.support.servers.merganser_server import (
    HttpClient,
    MerganserProcess,
    WebsocketClient,
    event_types,
)
from tests.support.time_limits import HANG_SECONDS

CHANGES_SUBSCRIPTION = """
subscription ($after: Cursor) { changes(after: $after) { cursor hasMore events {
  type cursor
  ... on MessageChange { messageId uid flags message { subject } }
  ... on MailboxChange { path }
  ... on SubmissionChange { submission { state recipients { state } } }
} } }
"""
MESSAGE_QUERY = """
query ($id: ID!) { message(by: {id: $id}) {
  subject text html(sanitize: false) size sourceUrl
  from { name address } envelope { from recipients { value } }
  attachments { filename contentType size url }
} }
"""
SUBMISSION_QUERY = (
    "query ($id: ID!) { submission(by: {id: $id}) { state recipients { state lastResponse } } }"
)


async def deliver_message(
    server: MerganserProcess, subject: str, recipient: str = "ada@example.org"
) -> str:
    reply = await server.deliver_by_lmtp(raw_message(subject), recipient)
    assert reply.startswith("250 2.0.0 OK: queued")
    return subject


async def _assert_message_is_read_completely(
    client: HttpClient, message_id: str, source: bytes
) -> None:
    message = (await client(MESSAGE_QUERY, id=message_id))["message"]
    assert message["subject"] == "Rich"
    assert message["from"] == {"name": "Carol", "address": "carol@example.com"}
    assert message["envelope"] == {
        "from": "carol@example.com",
        "recipients": [{"value": "ada@example.org"}],
    }
    assert message["text"].strip() == PLAIN_TEXT
    assert message["html"].strip() == HTML_TEXT.decode()

    attachments_by_name = {
        attachment["filename"]: attachment for attachment in message["attachments"]
    }
    assert attachments_by_name["large.pdf"]["size"] == len(LARGE_CONTENT)
    url = attachments_by_name["large.pdf"]["url"]
    async with httpx.AsyncClient(
        base_url=client.http.base_url, timeout=HANG_SECONDS
    ) as anonymous:  # the signature of the URL is sufficient
        full_response = await anonymous.get(url)
        assert full_response.status_code == 200
        assert full_response.content == LARGE_CONTENT
        range_response = await anonymous.get(url, headers={"Range": "bytes=1000-1999"})
        assert (range_response.status_code, range_response.content) == (
            206,
            LARGE_CONTENT[1000:2000],
        )
        assert range_response.headers["content-range"] == f"bytes 1000-1999/{len(LARGE_CONTENT)}"
        beyond_response = await anonymous.get(
            url, headers={"Range": f"bytes={len(LARGE_CONTENT)}-"}
        )
        assert beyond_response.status_code == 416
        not_modified_response = await anonymous.get(
            url, headers={"If-None-Match": full_response.headers["etag"]}
        )
        assert not_modified_response.status_code == 304
        source_response = await anonymous.get(message["sourceUrl"])
        assert without_trace_fields(source_response.content) == source
        assert message["size"] == len(source_response.content)
        forged_response = await anonymous.get(url[:-1] + ("A" if url[-1] != "A" else "B"))
        assert forged_response.status_code in {401, 403, 404}


async def test_delivered_message_is_sent_to_subscribers_and_read_completely(
    server: MerganserProcess,
) -> None:
    # BINARY contains NULs
    source = (
        build_message([file for file in ATTACHMENTS if file.content != BINARY_CONTENT]) + b"\r\n"
    )
    async with AsyncExitStack() as stack:
        ada = await stack.enter_async_context(server.open_client("ada"))
        bob = await stack.enter_async_context(server.open_client("bob"))
        sockets = [
            await stack.enter_async_context(server.open_websocket(server.secrets[name]))
            for name in ("ada", "ada", "bob")
        ]
        start_cursor = await ada.load_cursor()
        stream = await stack.enter_async_context(
            ada.subscribe_by_sse(CHANGES_SUBSCRIPTION, after=start_cursor)
        )
        for socket in sockets[:2]:
            await socket.subscribe(CHANGES_SUBSCRIPTION, after=start_cursor)
        await sockets[2].subscribe(CHANGES_SUBSCRIPTION, after=await bob.load_cursor())

        assert (await server.deliver_by_lmtp(source, "ada@example.org")).startswith(
            "250 2.0.0 OK: queued"
        )
        (event,) = await sockets[0].read_events(1)
        assert event["type"] == "MESSAGE_RECEIVED"
        assert event["message"] == {"subject": "Rich"}
        assert await sockets[1].read_events(1) == [event]
        assert (await stream.read_event())["data"]["changes"]["events"] == [event]
        await _assert_message_is_read_completely(ada, event["messageId"], source)

        assert await sockets[2].receives_nothing()
        assert (await bob(MESSAGE_QUERY, id=event["messageId"]))["message"] is None


def event_summary(event: Any) -> tuple[str, str, tuple[str, ...]]:
    return event["cursor"], event["messageId"], tuple(event["flags"] or ())


async def read_batches_until(socket: WebsocketClient, cursor: str) -> tuple[list[Any], list[Any]]:
    """Read batches until a cursor. Return them and their events."""
    batches: list[Any] = []
    while not batches or batches[-1]["cursor"] != cursor:
        batches.append(await socket.read_changes())
    return batches, [event for batch in batches for event in batch["events"]]


async def test_resumed_subscription_delivers_missed_events_once_in_order(
    server: MerganserProcess,
) -> None:
    async with server.open_client("eve") as eve:
        async with server.open_websocket(server.secrets["eve"]) as socket:
            await socket.subscribe(CHANGES_SUBSCRIPTION, after=await eve.load_cursor())
            await deliver_message(server, "heard", "eve@example.org")
            (first_event,) = await socket.read_events(1)
        for subject in ("first", "second", "third"):
            await deliver_message(server, subject, "eve@example.org")
        async with server.open_websocket(server.secrets["eve"]) as socket:
            await socket.subscribe(CHANGES_SUBSCRIPTION, after=first_event["cursor"])
            missed_events = await socket.read_events(3)
            assert [event["message"]["subject"] for event in missed_events] == [
                "first",
                "second",
                "third",
            ]
            await deliver_message(server, "live", "eve@example.org")
            (live_event,) = await socket.read_events(1)
            assert live_event["message"]["subject"] == "live"
            assert await socket.receives_nothing()
        async with eve.subscribe_by_sse(
            CHANGES_SUBSCRIPTION, after=first_event["cursor"]
        ) as stream:
            replayed_events = (await stream.read_event())["data"]["changes"]["events"]
        assert [event["cursor"] for event in replayed_events] == [
            event["cursor"] for event in [*missed_events, live_event]
        ]


async def test_thousand_missed_events_are_delivered_once_in_batches(
    server: MerganserProcess,
) -> None:
    async with (
        server.open_client("gil") as gil,
        server.open_websocket(server.secrets["gil"]) as open_socket,
    ):
        for number in range(20):
            await deliver_message(server, f"many {number}", "gil@example.org")
        start_cursor = await gil.load_cursor()
        await open_socket.subscribe(CHANGES_SUBSCRIPTION, after=start_cursor)
        for update_number in range(50):
            update_input = {
                "select": {"mailbox": {"path": "INBOX"}},
                "set": {"flags": [f"turn{update_number}"]},
            }
            payload = await gil.run_mutation("messageUpdate", update_input, "updatedCount")
            assert payload == {"updatedCount": 20}
        end_cursor = await gil.load_cursor()
        _, live_events = await read_batches_until(open_socket, end_cursor)
        async with server.open_websocket(server.secrets["gil"]) as resumed_socket:
            await resumed_socket.subscribe(CHANGES_SUBSCRIPTION, after=start_cursor)
            batches, missed_events = await read_batches_until(resumed_socket, end_cursor)
            assert await resumed_socket.receives_nothing()
        assert len({event["cursor"] for event in missed_events}) == len(missed_events) == 1000
        assert [event_summary(event) for event in missed_events] == [
            event_summary(event) for event in live_events
        ]
        assert batches[0]["hasMore"]
        assert not batches[-1]["hasMore"]
        assert max(len(batch["events"]) for batch in batches) <= 500

        # inside events that are stored as one change
        middle_cursor = batches[0]["events"][123]["cursor"]
        async with server.open_websocket(server.secrets["gil"]) as resumed_socket:
            await resumed_socket.subscribe(CHANGES_SUBSCRIPTION, after=middle_cursor)
            _, remaining_events = await read_batches_until(resumed_socket, end_cursor)
        assert [event_summary(event) for event in remaining_events] == [
            event_summary(event) for event in missed_events[124:]
        ]


async def test_sent_message_reaches_next_hop_and_states_are_reported(
    server: MerganserProcess,
) -> None:
    content = base64.b64encode(b"1;2").decode()
    send_input = {
        "to": [{"address": "carol@far.example", "name": "Carol"}],
        "cc": [{"address": "bob@example.org"}],
        "subject": "Out",
        "text": "Hi.\n.\n..dots\n",
        "attachments": [{"content": content, "filename": "a.csv", "contentType": "text/csv"}],
    }
    hop = Hop()
    async with (
        run_smtp_server(hop, port=server.next_hop_port),
        server.open_client("ada") as ada,
        server.open_websocket(server.secrets["ada"]) as socket,
    ):
        await socket.subscribe(CHANGES_SUBSCRIPTION, after=await ada.load_cursor())
        sent = (await ada.run_mutation("messageSend", send_input, "submissions { id state }"))[
            "submissions"
        ][0]
        events: list[Any] = []
        states: list[str] = []
        while "SENT" not in states:
            events += (await socket.read_changes())["events"]
            submission_events = [
                event for event in events if event["type"].startswith("SUBMISSION_")
            ]
            states = [event["submission"]["state"] for event in submission_events]
        assert "MESSAGE_ADDED" in event_types(events)  # the copy in Sent
        async with asyncio.timeout(HANG_SECONDS):
            while not hop.messages:  # noqa: ASYNC110 - the server has no event for this
                await asyncio.sleep(0.01)
        final_submission = (await ada(SUBMISSION_QUERY, id=sent["id"]))["submission"]
    (mail,) = hop.messages
    assert (mail.sender, mail.to) == ("ada@example.org", ["carol@far.example"])
    assert b"Subject: Out\r\n" in mail.raw
    assert b"\r\n.\r\n..dots\r\n" in mail.raw
    assert final_submission["state"] == "SENT"
    by_state = {
        recipient["state"]: recipient["lastResponse"]
        for recipient in final_submission["recipients"]
    }
    assert by_state.keys() == {"RELAYED", "DELIVERED"}
    assert "250 2.0.0 Taken" in by_state["RELAYED"]


async def test_recipient_refused_by_next_hop_is_bounced(server: MerganserProcess) -> None:
    send_input = {"to": [{"address": "gone@far.example"}], "subject": "Lost", "text": "Hi."}
    hop = Hop(rcpt_replies={"gone": "550 5.1.1 No such user"})
    async with (
        run_smtp_server(hop, port=server.next_hop_port),
        server.open_client("ada") as ada,
        server.open_websocket(server.secrets["ada"]) as socket,
    ):
        await socket.subscribe(CHANGES_SUBSCRIPTION, after=await ada.load_cursor())
        await ada.run_mutation("messageSend", send_input)
        events: list[Any] = []
        submissions: list[Any] = []
        while not (
            sum(map(event_types(events).count, ("MESSAGE_ADDED", "MESSAGE_RECEIVED")))
            == 2  # the copy in Sent and the DSN
            and submissions
            and submissions[-1]["state"] == "FAILED"
        ):
            events += (await socket.read_changes())["events"]
            submissions = [
                event["submission"] for event in events if event["type"].startswith("SUBMISSION_")
            ]
        assert [recipient["state"] for recipient in submissions[-1]["recipients"]] == ["BOUNCED"]


async def test_log_contains_no_mail_content_or_secrets(server: MerganserProcess) -> None:
    async with server.open_client("ada") as ada:
        await deliver_message(server, "Unspeakable", "ada@example.org")
        await ada("{ viewer { user { messages { nodes { subject text } } } } }")
    log = server.log
    words = ["Unspeakable", "Carol", "carol@", "ada@example.org", "Hi there", "mgk_"]
    assert [word for word in words if word in log] == []
    assert server.unexpected_log_records() == []
