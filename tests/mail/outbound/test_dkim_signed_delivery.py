"""What leaves us is signed: through the queue to a server, checked by others than ourselves."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import col

from bench.servers.ports import HOST, free_port
from graph.types import global_ids
from mail.authentication.dkim import AuthResult
from mail.compose.message_builder import OutgoingFile
from mail.mime.header_encoding import NamedAddress
from models.domains.dkim_keys import DkimKey
from models.runtime.environment import Environment
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import Client, Clock, context, raw_message
from tests.support.accounts.user_operations import run
from tests.support.mail_servers.dns_zone_server import asking, zone
from tests.support.mail_servers.queue_worker import relay, ring, send, settled, working
from tests.support.mail_servers.scanner_servers import program
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations import dkim_key_operations
from tests.support.operations.domain_operations import made as domain_made
from tests.support.operations.message_sources import upload
from tests.support.operations.rewrite_and_bcc_operations import come

PASSED = (
    ("example.org", "rsa-sha256", AuthResult.PASS),
    ("example.org", "ed25519-sha256", AuthResult.PASS),
)
CONF = """
options {{
    filters = "dkim";
    dns {{ nameserver = ["{place}"]; timeout = 2s; retransmits = 2; }}
    pidfile = "{folder}/rspamd.pid";
    url_tld = "{folder}/domains";
    disable_hyperscan = true;
    explicit_modules = ["dkim"];
}}
metric {{ name = "default"; actions {{ reject = 100; }} }}
logging {{ type = "console"; level = "warning"; }}
worker "normal" {{ bind_socket = "{host}:{port}"; count = 1; }}
dkim {{ enabled = true; }}
"""


@pytest.fixture(autouse=True)
def today(clock: Clock) -> None:
    """Others take no signature of times to come."""
    clock.time = datetime.now(UTC)


@asynccontextmanager
async def by_rspamd(place: str, folder: Path) -> AsyncIterator[str]:
    """Where rspamd answers, which asks this name server."""
    words, port = program("rspamd"), free_port()
    (folder / "domains").write_text("example\norg\n")
    conf = CONF.format(place=place, folder=folder, host=HOST, port=port)
    (folder / "rspamd.conf").write_text(conf)
    places = [f"--var={name}={folder}" for name in ("RUNDIR", "DBDIR", "LOGDIR")]
    command = [words, "-i", "-f", "-c", str(folder / "rspamd.conf"), *places]
    with (folder / "said").open("wb") as said:
        process = await asyncio.create_subprocess_exec(*command, stdout=said, stderr=said)
    try:
        async with httpx.AsyncClient() as http, asyncio.timeout(60):
            while True:
                assert process.returncode is None, (folder / "said").read_text()
                try:
                    await http.get(f"http://{HOST}:{port}/ping")
                    break
                except httpx.TransportError:
                    await asyncio.sleep(0.1)
        yield f"http://{HOST}:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await asyncio.wait_for(process.wait(), 20)


async def sent(client: Client, server: Server, *to: NamedAddress, **more: Any) -> bytes:
    """A message, as a server got it."""
    async with working(client.world, relay(server)):
        key = await send(client, *(to or [NamedAddress("carol@example.net")]), **more)
        await settled(client.world, key)
    return server.mails[-1].raw


async def test_two_signatures_pass_wherever_they_are_checked(
    ada: Client, root: Client, clock: Clock, tmp_path: Path
) -> None:
    keys = await dkim_key_operations.both(root)
    async with listening(Server()) as server:
        raw = await sent(ada, server, bcc=[NamedAddress("dave@example.net")])
    assert raw.startswith(b"DKIM-Signature: v=1; a=rsa-sha256;")
    assert b"dave" not in raw
    records = dkim_key_operations.texts(keys)
    assert await dkim_key_operations.by_us(raw, records, int(clock().timestamp())) == list(PASSED)
    assert dkim_key_operations.by_dkimpy(raw, records) == [True, True]
    async with (
        asking(zone(records)) as place,
        by_rspamd(place, tmp_path) as url,
        httpx.AsyncClient(timeout=30) as http,
    ):
        whole = (await http.post(f"{url}/checkv2", content=raw)).json()
        broken = (await http.post(f"{url}/checkv2", content=raw + b"x\r\n")).json()
    assert "R_DKIM_ALLOW" in whole["symbols"], json.dumps(whole)
    assert sorted(whole["symbols"]["R_DKIM_ALLOW"]["options"]) == [
        "example.org:s=e", "example.org:s=r"
    ]  # fmt: skip
    assert "R_DKIM_ALLOW" not in broken["symbols"]


async def test_without_a_key_nothing_is_signed(ada: Client) -> None:
    async with listening(Server()) as server:
        raw = await sent(ada, server)
    assert b"DKIM-Signature" not in raw
    assert raw.endswith(b"dots\r\n")


async def test_a_large_message_is_signed_in_pieces(ada: Client, root: Client, clock: Clock) -> None:
    keys = await dkim_key_operations.both(root)
    text = "".join(f"line {n}  with \t blanks \r\n" for n in range(30_000)) + "\r\n \r\n\r\n"
    async with listening(Server(features={"data_size_limit": 1 << 25})) as server:
        async with working(ada.world, relay(server)):
            draft = await large(ada, text)
            await settled(ada.world, draft)
        raw = server.mails[-1].raw
    assert len(raw) > 2 << 20
    assert await dkim_key_operations.by_us(
        raw, dkim_key_operations.texts(keys), int(clock().timestamp())
    ) == list(PASSED)
    assert dkim_key_operations.by_dkimpy(raw, dkim_key_operations.texts(keys)) == [True, True]


async def large(ada: Client, text: str) -> int:

    file = OutgoingFile(bytes(range(256)) * 8000)
    outgoing = SendRequest(to=[NamedAddress("carol@example.net")], text=text, attachments=[file])
    done = await submission_create.send_message(context(ada), outgoing)
    assert done.submission is not None
    return int(done.submission.id)


async def test_signatures_of_each_attempt_are_by_the_key_in_force(
    ada: Client, root: Client, clock: Clock
) -> None:
    (old, _) = await dkim_key_operations.both(root)
    async with listening(Server(after_dot=["451 4.7.1 Later"])) as server:
        async with working(ada.world, relay(server)):
            key = await send(ada, NamedAddress("carol@example.net"))
            await settled(ada.world, key)
            new = await dkim_key_operations.key(root, selector="new")
            clock.tick(hours=1)
            ring(ada.world)
            async with asyncio.timeout(10):
                while not server.mails:  # noqa: ASYNC110 - a server has no event
                    await asyncio.sleep(0.01)
        raw = server.mails[-1].raw
    assert b"s=new;" in raw
    assert b"s=r;" not in raw
    assert old["selector"] == "r"
    assert dkim_key_operations.by_dkimpy(
        raw, dkim_key_operations.texts([new, await in_use(root, "e")])
    ) == [True, True]


async def in_use(root: Client, selector: str) -> Any:
    nodes = (await root(dkim_key_operations.LIST))["dkimKeys"]["nodes"]
    return next(one for one in nodes if one["selector"] == selector)


async def test_a_key_for_all_signs_where_its_record_is_published(ada: Client, root: Client) -> None:
    one = await dkim_key_operations.key(root, domains=["*"], selector="any")
    assert one["dnsTxt"]["name"] == "any._domainkey"
    records = {"any._domainkey.example.org": one["dnsTxt"]["value"]}
    async with listening(Server()) as server:
        async with asking(zone({"example.org": "nothing"})) as place:
            dkim_key_operations.asks(ada, place)
            assert b"DKIM-Signature" not in await sent(ada, server)
        ada.world.byte_cache.remove(("dkim record", "any._domainkey.example.org"))
        async with asking(zone(records)) as place:
            dkim_key_operations.asks(ada, place)
            raw = await sent(ada, server)
    assert dkim_key_operations.by_dkimpy(raw, records) == [True]
    assert b"d=example.org;\r\n s=any;" in raw


async def test_the_domain_of_the_machine_signs_too_where_it_is_to(
    ada: Client, root: Client
) -> None:
    await domain_made(root, "mx.example.org")
    keys = [
        await dkim_key_operations.key(root),
        await dkim_key_operations.key(root, domains=["mx.example.org"]),
    ]
    options = replace(ada.world.options, dkim_host=True)
    object.__setattr__(ada.world, "options", options)
    async with listening(Server()) as server:
        raw = await sent(ada, server)
    assert dkim_key_operations.by_dkimpy(raw, dkim_key_operations.texts(keys)) == [True, True]
    assert b"d=mx.example.org" in raw


async def team(root: Client) -> None:
    """An address that leads to somebody elsewhere."""
    given = {"address": "team@example.org", "targets": ["carol@example.net"]}
    document = """mutation ($input: AddressCreateInput!) {
        addressCreate(input: $input) { errors { message } } }"""
    assert (await root(document, input=given))["addressCreate"]["errors"] == []


async def test_what_comes_from_elsewhere_is_sealed_and_never_signed(
    ada: Client, root: Client
) -> None:
    (key, _) = await dkim_key_operations.both(root)
    await team(root)
    async with listening(Server()) as server, working(ada.world, relay(server)):
        raw = raw_message("Forged", From="Ada <ada@example.org>")
        await come(ada.world, "team@example.org", raw=raw)
        async with asyncio.timeout(10):
            while not server.mails:  # noqa: ASYNC110 - a server has no event
                await asyncio.sleep(0.01)
    raw = server.mails[-1].raw
    assert b"DKIM-Signature" not in raw
    assert raw.startswith(b"Delivered-To: ") or b"ARC-Seal: i=1; a=rsa-sha256;" in raw
    assert f"s={key['selector']}".encode() in raw


async def test_what_one_of_us_wrote_is_signed_when_it_is_sent_on(ada: Client, root: Client) -> None:
    keys = await dkim_key_operations.both(root)
    await team(root)
    async with listening(Server()) as server, working(ada.world, relay(server)):
        await settled(ada.world, await send(ada, NamedAddress("team@example.org")))
        async with asyncio.timeout(10):
            while not server.mails:  # noqa: ASYNC110 - a server has no event
                await asyncio.sleep(0.01)
    raw = server.mails[-1].raw
    assert dkim_key_operations.by_dkimpy(raw, dkim_key_operations.texts(keys)) == [True, True]


async def test_a_key_that_cannot_be_opened_holds_nothing_up(
    ada: Client, root: Client, world: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    await dkim_key_operations.key(root)
    async with world.write_session() as session:
        await session.exec(update(DkimKey).values(private="gone." + col(DkimKey.private)))
    async with listening(Server()) as server:
        raw = await sent(ada, server)
    assert b"DKIM-Signature" not in raw
    assert "a key that signs cannot be opened" in caplog.text
    assert "PRIVATE" not in caplog.text


async def test_a_draft_that_is_submitted_is_signed(ada: Client, root: Client) -> None:
    keys = await dkim_key_operations.both(root)
    given = {"draft": True, "text": "Dear Carol,", "to": [{"address": "carol@example.net"}]}
    draft = (await upload(ada, **given))["message"]
    async with listening(Server()) as server, working(ada.world, relay(server)):
        done = await run(ada, "messageSubmit", "submission { id }", message={"id": draft["id"]})
        await settled(ada.world, global_ids.decode("Submission", done["submission"]["id"]))
        raw = server.mails[-1].raw
    assert dkim_key_operations.by_dkimpy(raw, dkim_key_operations.texts(keys)) == [True, True]


async def test_answers_and_reports_of_ours_are_signed(ada: Client, root: Client) -> None:
    await domain_made(root, "mx.example.org")
    keys = [
        await dkim_key_operations.key(root),
        await dkim_key_operations.key(root, domains=["mx.example.org"]),
    ]
    document = """mutation { autoreplySet(input: {set: {enabled: true, text: "Away."}}) {
        errors { code } } }"""
    assert (await ada(document))["autoreplySet"]["errors"] == []
    await team(root)
    refusing = Server(replies={"carol": "550 5.1.1 Nobody"})
    async with listening(refusing) as server, working(ada.world, relay(server)):
        await come(ada.world, ada.address, sender="dave@example.com")
        await come(ada.world, "team@example.org", sender="erin@example.com")
        async with asyncio.timeout(20):
            while len(server.mails) < 2:  # noqa: ASYNC110 - a server has no event
                await asyncio.sleep(0.01)
    by = {mail.to[0]: mail.raw for mail in server.mails}
    assert b"d=example.org;" in by["dave@example.com"]
    assert b"d=mx.example.org;" in by["erin@example.com"]
    for raw in by.values():
        assert dkim_key_operations.by_dkimpy(raw, dkim_key_operations.texts(keys)) == [True]
