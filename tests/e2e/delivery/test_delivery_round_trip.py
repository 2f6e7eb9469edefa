"""The main road: mail in, news to those who follow, bytes out, mail out."""

import asyncio
import base64
from contextlib import AsyncExitStack
from typing import Any

import httpx

from tests.conftest import raw_message
from tests.support.mail.multipart_message import BINARY, FILES, HTML, LARGE, TEXT, raw
from tests.support.mail.trace_header_lines import below
from tests.support.mail_servers.smtp_and_dns_servers import Server as Hop
from tests.support.mail_servers.smtp_and_dns_servers import listening
from tests.support.servers.merganser_server import Client, Server, Socket, kinds

FOLLOW = """
subscription ($after: Cursor) { changes(after: $after) { cursor hasMore events {
  kind cursor
  ... on MessageChange { messageId uid flags message { subject } }
  ... on MailboxChange { path }
  ... on SubmissionChange { submission { state recipients { state } } }
} } }
"""
READ = """
query ($id: ID!) { message(by: {id: $id}) {
  subject text html(sanitize: false) size sourceUrl
  from { name address } envelope { from rcpt { value } }
  attachments { filename contentType size url }
} }
"""
STATE = "query ($id: ID!) { submission(by: {id: $id}) { state recipients { state lastResponse } } }"


async def arrived(server: Server, subject: str, to: str = "ada@example.org") -> str:
    answer = await server.deliver(raw_message(subject), to)
    assert answer.startswith("250 2.0.0 Delivered")
    return subject


async def _reads_all_of_it(client: Client, id: str, whole: bytes) -> None:
    read = (await client(READ, id=id))["message"]
    assert read["subject"] == "Rich"
    assert read["from"] == {"name": "Carol", "address": "carol@example.com"}
    assert read["envelope"] == {"from": "carol@example.com", "rcpt": [{"value": "ada@example.org"}]}
    assert read["text"].strip() == TEXT
    assert [html.strip() for html in read["html"]] == [HTML.decode()]

    names = {each["filename"]: each for each in read["attachments"]}
    assert names["large.pdf"]["size"] == len(LARGE)
    url = names["large.pdf"]["url"]
    async with httpx.AsyncClient(
        base_url=client.http.base_url, timeout=30
    ) as stranger:  # by signature alone
        fetched = await stranger.get(url)
        assert fetched.status_code == 200
        assert fetched.content == LARGE
        part = await stranger.get(url, headers={"Range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, LARGE[1000:2000])
        assert part.headers["content-range"] == f"bytes 1000-1999/{len(LARGE)}"
        beyond = await stranger.get(url, headers={"Range": f"bytes={len(LARGE)}-"})
        assert beyond.status_code == 416
        kept = await stranger.get(url, headers={"If-None-Match": fetched.headers["etag"]})
        assert kept.status_code == 304
        source = await stranger.get(read["sourceUrl"])
        assert below(source.content) == whole
        assert read["size"] == len(source.content)
        forged = await stranger.get(url[:-1] + ("A" if url[-1] != "A" else "B"))
        assert forged.status_code in {401, 403, 404}


async def test_mail_in_is_heard_on_websocket_and_sse_and_read_to_the_last_byte(
    server: Server,
) -> None:
    whole = raw([file for file in FILES if file.content != BINARY]) + b"\r\n"  # that has NULs
    async with AsyncExitStack() as stack:
        ada = await stack.enter_async_context(server.client("ada"))
        bob = await stack.enter_async_context(server.client("bob"))
        sockets = [
            await stack.enter_async_context(server.socket(server.secrets[name]))
            for name in ("ada", "ada", "bob")
        ]
        start = await ada.cursor()
        stream = await stack.enter_async_context(ada.stream(FOLLOW, after=start))
        for socket in sockets[:2]:
            await socket.subscribe(FOLLOW, after=start)
        await sockets[2].subscribe(FOLLOW, after=await bob.cursor())

        assert (await server.deliver(whole, "ada@example.org")).startswith("250 2.0.0 Delivered")
        (event,) = await sockets[0].events(1)
        assert event["kind"] == "MESSAGE_ADDED"
        assert event["message"] == {"subject": "Rich"}
        assert await sockets[1].events(1) == [event]
        assert (await stream.hear())["data"]["changes"]["events"] == [event]
        await _reads_all_of_it(ada, event["messageId"], whole)

        assert await sockets[2].silent()
        assert (await bob(READ, id=event["messageId"]))["message"] is None


def _away(one: Any) -> tuple[str, str, tuple[str, ...]]:
    return one["cursor"], one["messageId"], tuple(one["flags"] or ())


async def caught_up(socket: Socket, cursor: str) -> tuple[list[Any], list[Any]]:
    """All batches up to a cursor, and their events."""
    batches: list[Any] = []
    while not batches or batches[-1]["cursor"] != cursor:
        batches.append(await socket.batch())
    return batches, [event for batch in batches for event in batch["events"]]


async def test_who_comes_back_hears_what_was_missed_each_once_and_in_order(server: Server) -> None:
    async with server.client("eve") as eve:
        async with server.socket(server.secrets["eve"]) as socket:
            await socket.subscribe(FOLLOW, after=await eve.cursor())
            await arrived(server, "heard", "eve@example.org")
            (heard,) = await socket.events(1)
        for subject in ("first", "second", "third"):
            await arrived(server, subject, "eve@example.org")
        async with server.socket(server.secrets["eve"]) as socket:
            await socket.subscribe(FOLLOW, after=heard["cursor"])
            missed = await socket.events(3)
            assert [one["message"]["subject"] for one in missed] == ["first", "second", "third"]
            await arrived(server, "live", "eve@example.org")
            (live,) = await socket.events(1)
            assert live["message"]["subject"] == "live"
            assert await socket.silent()
        async with eve.stream(FOLLOW, after=heard["cursor"]) as events:
            again = (await events.hear())["data"]["changes"]["events"]
        assert [one["cursor"] for one in again] == [one["cursor"] for one in [*missed, live]]


async def test_a_thousand_missed_changes_come_in_batches_each_event_once(server: Server) -> None:
    async with server.client("gil") as gil, server.socket(server.secrets["gil"]) as stayed:
        for number in range(20):
            await arrived(server, f"many {number}", "gil@example.org")
        start = await gil.cursor()
        await stayed.subscribe(FOLLOW, after=start)
        for turn in range(50):
            given = {"select": {"mailbox": {"path": "INBOX"}}, "set": {"flags": [f"turn{turn}"]}}
            done = await gil.do("messageUpdate", given, "updatedCount")
            assert done == {"updatedCount": 20}
        end = await gil.cursor()
        _, live = await caught_up(stayed, end)
        async with server.socket(server.secrets["gil"]) as back:
            await back.subscribe(FOLLOW, after=start)
            batches, missed = await caught_up(back, end)
            assert await back.silent()
        assert len({one["cursor"] for one in missed}) == len(missed) == 1000
        assert [_away(one) for one in missed] == [_away(one) for one in live]
        assert batches[0]["hasMore"]
        assert not batches[-1]["hasMore"]
        assert max(len(batch["events"]) for batch in batches) <= 500

        halfway = batches[0]["events"][123]["cursor"]  # inside of what was stored as one change
        async with server.socket(server.secrets["gil"]) as back:
            await back.subscribe(FOLLOW, after=halfway)
            _, rest = await caught_up(back, end)
        assert [_away(one) for one in rest] == [_away(one) for one in missed[124:]]


async def test_mail_out_is_taken_by_the_next_hop_and_its_way_is_heard(server: Server) -> None:
    content = base64.b64encode(b"1;2").decode()
    given = {
        "to": [{"address": "carol@far.example", "name": "Carol"}],
        "cc": [{"address": "bob@example.org"}],
        "subject": "Out",
        "text": "Hi.\n.\n..dots\n",
        "attachments": [{"content": content, "filename": "a.csv", "contentType": "text/csv"}],
    }
    hop = Hop()
    async with (
        listening(hop, port=server.hop),
        server.client("ada") as ada,
        server.socket(server.secrets["ada"]) as socket,
    ):
        await socket.subscribe(FOLLOW, after=await ada.cursor())
        sent = (await ada.do("messageSend", given, "submission { id state }"))["submission"]
        heard: list[Any] = []
        states: list[str] = []
        while "SENT" not in states:
            heard += (await socket.batch())["events"]
            ours = [one for one in heard if one["kind"] == "SUBMISSION_CHANGED"]
            states = [one["submission"]["state"] for one in ours]
        assert "MESSAGE_ADDED" in kinds(heard)  # the copy in Sent
        async with asyncio.timeout(5):
            while not hop.mails:  # noqa: ASYNC110 - it rings no bell
                await asyncio.sleep(0.01)
        settled = (await ada(STATE, id=sent["id"]))["submission"]
    (mail,) = hop.mails
    assert (mail.sender, mail.to) == ("ada@example.org", ["carol@far.example"])
    assert b"Subject: Out\r\n" in mail.raw
    assert b"\r\n.\r\n..dots\r\n" in mail.raw
    assert settled["state"] == "SENT"
    by_state = {each["state"]: each["lastResponse"] for each in settled["recipients"]}
    assert by_state.keys() == {"RELAYED", "DELIVERED"}
    assert "250 2.0.0 Taken" in by_state["RELAYED"]


async def test_a_recipient_the_next_hop_refuses_comes_back_as_a_report(server: Server) -> None:
    given = {"to": [{"address": "gone@far.example"}], "subject": "Lost", "text": "Hi."}
    hop = Hop(replies={"gone": "550 5.1.1 No such user"})
    async with (
        listening(hop, port=server.hop),
        server.client("ada") as ada,
        server.socket(server.secrets["ada"]) as socket,
    ):
        await socket.subscribe(FOLLOW, after=await ada.cursor())
        await ada.do("messageSend", given)
        heard: list[Any] = []
        while kinds(heard).count("MESSAGE_ADDED") < 2:  # in Sent, and the report
            heard += (await socket.batch())["events"]
        states = [one["submission"] for one in heard if one["kind"] == "SUBMISSION_CHANGED"]
        assert states[-1]["state"] == "FAILED"
        assert [each["state"] for each in states[-1]["recipients"]] == ["BOUNCED"]


async def test_nothing_of_mails_or_secrets_is_in_the_log(server: Server) -> None:
    async with server.client("ada") as ada:
        await arrived(server, "Unspeakable", "ada@example.org")
        await ada("{ viewer { user { messages { nodes { subject text } } } } }")
    log = server.log
    words = ["Unspeakable", "Carol", "carol@", "ada@example.org", "Hi there", "mgk_"]
    assert [word for word in words if word in log] == []
    assert server.complaints() == []
