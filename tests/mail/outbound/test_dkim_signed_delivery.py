"""DKIM and ARC signatures of messages sent by the queue, checked with dkimpy and rspamd."""

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
from mail.compose.message_draft import OutgoingFile
from mail.mime.header_encoding import NamedAddress
from models.domains.dkim_keys import DkimKey
from models.runtime.environment import Environment
from resolvers.submission import create as submission_create
from resolvers.submission.create import SendRequest
from tests.conftest import GraphQLClient, ManualClock, client_context, raw_message
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail_servers.dns_zone_server import make_dns_zone, run_dns_zone
from tests.support.mail_servers.queue_worker import (
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.mail_servers.scanner_servers import require_program
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.domain_operations import create_domain as domain_made
from tests.support.operations.message_sources import save_draft
from tests.support.operations.platform import dkim_key_operations
from tests.support.operations.rewrite_and_bcc_operations import deliver_incoming
from tests.support.time_limits import HANG_SECONDS

PASSED_RESULTS = (
    ("example.org", "rsa-sha256", AuthResult.PASS),
    ("example.org", "ed25519-sha256", AuthResult.PASS),
)
RSPAMD_CONFIG = """
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
def set_clock_to_now(clock: ManualClock) -> None:
    """Rspamd and dkimpy refuse signatures that are dated in the future."""
    clock.time = datetime.now(UTC)


@asynccontextmanager
async def run_rspamd(resolver_address: str, folder: Path) -> AsyncIterator[str]:
    """Run rspamd with this name server and yield its URL."""
    program_path, port = require_program("rspamd"), free_port()
    (folder / "domains").write_text("example\norg\n")
    config = RSPAMD_CONFIG.format(place=resolver_address, folder=folder, host=HOST, port=port)
    (folder / "rspamd.conf").write_text(config)
    variables = [f"--var={name}={folder}" for name in ("RUNDIR", "DBDIR", "LOGDIR")]
    command = [program_path, "-i", "-f", "-c", str(folder / "rspamd.conf"), *variables]
    with (folder / "said").open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    try:
        async with httpx.AsyncClient() as http, asyncio.timeout(HANG_SECONDS):
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
        await asyncio.wait_for(process.wait(), HANG_SECONDS)


async def send_and_receive(
    client: GraphQLClient, server: FakeSmtpServer, *recipients: NamedAddress, **send_options: Any
) -> bytes:
    """Send a message and return it as the server received it."""
    async with run_queue_worker(client.environment, relay_settings(server)):
        submission_id = await queue_message(
            client, *(recipients or [NamedAddress("carol@example.net")]), **send_options
        )
        await wait_until_tried(client.environment, submission_id)
    return server.messages[-1].raw


async def test_rsa_and_ed25519_signatures_pass_other_verifiers(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock, tmp_path: Path
) -> None:
    keys = await dkim_key_operations.create_key_of_each_algorithm(root)
    async with run_smtp_server(FakeSmtpServer()) as server:
        raw = await send_and_receive(ada, server, bcc=[NamedAddress("dave@example.net")])
    assert raw.startswith(b"DKIM-Signature: v=1; a=rsa-sha256;")
    assert b"dave" not in raw
    records = dkim_key_operations.dkim_txt_records(keys)
    assert await dkim_key_operations.verify_with_merganser(
        raw, records, int(clock().timestamp())
    ) == list(PASSED_RESULTS)
    assert dkim_key_operations.verify_with_dkimpy(raw, records) == [True, True]
    async with (
        run_dns_zone(make_dns_zone(records)) as resolver_address,
        run_rspamd(resolver_address, tmp_path) as url,
        httpx.AsyncClient(timeout=HANG_SECONDS) as http,
    ):
        intact_result = (await http.post(f"{url}/checkv2", content=raw)).json()
        changed_result = (await http.post(f"{url}/checkv2", content=raw + b"x\r\n")).json()
    assert "R_DKIM_ALLOW" in intact_result["symbols"], json.dumps(intact_result)
    assert sorted(intact_result["symbols"]["R_DKIM_ALLOW"]["options"]) == [
        "example.org:s=e", "example.org:s=r"
    ]  # fmt: skip
    assert "R_DKIM_ALLOW" not in changed_result["symbols"]


async def test_message_without_signing_key_is_not_signed(ada: GraphQLClient) -> None:
    async with run_smtp_server(FakeSmtpServer()) as server:
        raw = await send_and_receive(ada, server)
    assert b"DKIM-Signature" not in raw
    assert raw.endswith(b"dots\r\n")


async def test_large_message_is_signed(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    keys = await dkim_key_operations.create_key_of_each_algorithm(root)
    text = "".join(f"line {n}  with \t blanks \r\n" for n in range(10_000)) + "\r\n \r\n\r\n"
    async with run_smtp_server(FakeSmtpServer(smtp_options={"data_size_limit": 1 << 25})) as server:
        async with run_queue_worker(ada.environment, relay_settings(server)):
            submission_id = await send_large_message(ada, text)
            await wait_until_tried(ada.environment, submission_id)
        raw = server.messages[-1].raw
    assert len(raw) > 2 << 20
    assert await dkim_key_operations.verify_with_merganser(
        raw, dkim_key_operations.dkim_txt_records(keys), int(clock().timestamp())
    ) == list(PASSED_RESULTS)
    assert dkim_key_operations.verify_with_dkimpy(
        raw, dkim_key_operations.dkim_txt_records(keys)
    ) == [True, True]


async def send_large_message(ada: GraphQLClient, text: str) -> int:
    file = OutgoingFile(bytes(range(256)) * 8000)
    request = SendRequest(to=[NamedAddress("carol@example.net")], text=text, attachments=[file])
    payload = await submission_create.compose_and_queue_message(client_context(ada), request)
    assert payload.submission is not None
    return int(payload.submission.id)


async def test_retry_is_signed_with_current_key(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    (old_key, _) = await dkim_key_operations.create_key_of_each_algorithm(root)
    async with run_smtp_server(FakeSmtpServer(data_replies=["451 4.7.1 Later"])) as server:
        async with run_queue_worker(ada.environment, relay_settings(server)):
            submission_id = await queue_message(ada, NamedAddress("carol@example.net"))
            await wait_until_tried(ada.environment, submission_id)
            new_key = await dkim_key_operations.create_dkim_key(root, selector="new")
            clock.tick(hours=1)
            wake_queue_worker(ada.environment)
            async with asyncio.timeout(HANG_SECONDS):
                while not server.messages:  # noqa: ASYNC110 - a server has no event
                    await asyncio.sleep(0.01)
        raw = server.messages[-1].raw
    assert b"s=new;" in raw
    assert b"s=r;" not in raw
    assert old_key["selector"] == "r"
    assert dkim_key_operations.verify_with_dkimpy(
        raw, dkim_key_operations.dkim_txt_records([new_key, await find_signing_key(root, "e")])
    ) == [True, True]


async def find_signing_key(root: GraphQLClient, selector: str) -> Any:
    nodes = (await root(dkim_key_operations.DKIM_KEYS_QUERY))["dkimKeys"]["nodes"]
    return next(signing_key for signing_key in nodes if signing_key["selector"] == selector)


async def test_wildcard_key_signs_only_if_dns_record_is_published(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    signing_key = await dkim_key_operations.create_dkim_key(root, domain="*", selector="any")
    assert signing_key["dnsTxt"]["name"] == "any._domainkey"
    records = {"any._domainkey.example.org": signing_key["dnsTxt"]["value"]}
    async with run_smtp_server(FakeSmtpServer()) as server:
        async with run_dns_zone(make_dns_zone({"example.org": "nothing"})) as resolver_address:
            dkim_key_operations.use_dns_server(ada, resolver_address)
            assert b"DKIM-Signature" not in await send_and_receive(ada, server)
        ada.environment.byte_cache.remove(("dkim record", "any._domainkey.example.org"))
        async with run_dns_zone(make_dns_zone(records)) as resolver_address:
            dkim_key_operations.use_dns_server(ada, resolver_address)
            raw = await send_and_receive(ada, server)
    assert dkim_key_operations.verify_with_dkimpy(raw, records) == [True]
    assert b"d=example.org;\r\n s=any;" in raw


async def test_domain_of_hostname_signs_too_if_enabled(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    await domain_made(root, "mx.example.org")
    keys = [
        await dkim_key_operations.create_dkim_key(root),
        await dkim_key_operations.create_dkim_key(root, domain="mx.example.org"),
    ]
    options = replace(ada.environment.options, dkim_sign_host_domain=True)
    object.__setattr__(ada.environment, "options", options)
    async with run_smtp_server(FakeSmtpServer()) as server:
        raw = await send_and_receive(ada, server)
    assert dkim_key_operations.verify_with_dkimpy(
        raw, dkim_key_operations.dkim_txt_records(keys)
    ) == [True, True]
    assert b"d=mx.example.org" in raw


async def create_team_forward(root: GraphQLClient) -> None:
    """Create team@example.org, which forwards to another server."""
    address_input = {"address": "team@example.org", "forwardTo": ["carol@example.net"]}
    document = """mutation ($input: AddressCreateInput!) {
        addressCreate(input: $input) { errors { message } } }"""
    assert (await root(document, input=address_input))["addressCreate"]["errors"] == []


async def test_forwarded_remote_message_is_arc_sealed_and_not_signed(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    (signing_key, _) = await dkim_key_operations.create_key_of_each_algorithm(root)
    await create_team_forward(root)
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(ada.environment, relay_settings(server)),
    ):
        raw = raw_message("Forged", From="Ada <ada@example.org>")
        await deliver_incoming(ada.environment, "team@example.org", raw=raw)
        async with asyncio.timeout(HANG_SECONDS):
            while not server.messages:  # noqa: ASYNC110 - a server has no event
                await asyncio.sleep(0.01)
    raw = server.messages[-1].raw
    assert b"DKIM-Signature" not in raw
    assert raw.startswith(b"Delivered-To: ") or b"ARC-Seal: i=1; a=rsa-sha256;" in raw
    assert f"s={signing_key['selector']}".encode() in raw


async def test_forwarded_message_of_local_user_is_signed(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    keys = await dkim_key_operations.create_key_of_each_algorithm(root)
    await create_team_forward(root)
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(ada.environment, relay_settings(server)),
    ):
        await wait_until_tried(
            ada.environment, await queue_message(ada, NamedAddress("team@example.org"))
        )
        async with asyncio.timeout(HANG_SECONDS):
            while not server.messages:  # noqa: ASYNC110 - a server has no event
                await asyncio.sleep(0.01)
    raw = server.messages[-1].raw
    assert dkim_key_operations.verify_with_dkimpy(
        raw, dkim_key_operations.dkim_txt_records(keys)
    ) == [True, True]


async def test_undecryptable_signing_key_does_not_block_delivery(
    ada: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await dkim_key_operations.create_dkim_key(root)
    async with environment.write_session() as session:
        await session.exec(update(DkimKey).values(private="gone." + col(DkimKey.private)))
    async with run_smtp_server(FakeSmtpServer()) as server:
        raw = await send_and_receive(ada, server)
    assert b"DKIM-Signature" not in raw
    assert "A DKIM key can't be used" in caplog.text
    assert "PRIVATE" not in caplog.text


async def test_submitted_draft_is_signed(ada: GraphQLClient, root: GraphQLClient) -> None:
    keys = await dkim_key_operations.create_key_of_each_algorithm(root)
    draft_input = {"text": "Dear Carol,", "to": [{"address": "carol@example.net"}]}
    draft = (await save_draft(ada, **draft_input))["message"]
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(ada.environment, relay_settings(server)),
    ):
        payload = await execute_mutation(
            ada, "draftSend", "submissions { id }", message={"id": draft["id"]}
        )
        await wait_until_tried(
            ada.environment, global_ids.decode("Submission", payload["submissions"][0]["id"])
        )
        raw = server.messages[-1].raw
    assert dkim_key_operations.verify_with_dkimpy(
        raw, dkim_key_operations.dkim_txt_records(keys)
    ) == [True, True]


async def test_autoreply_and_dsn_are_signed(ada: GraphQLClient, root: GraphQLClient) -> None:
    await domain_made(root, "mx.example.org")
    keys = [
        await dkim_key_operations.create_dkim_key(root),
        await dkim_key_operations.create_dkim_key(root, domain="mx.example.org"),
    ]
    document = """mutation { autoreplySet(input: {set: {enabled: true, text: "Away."}}) {
        errors { code } } }"""
    assert (await ada(document))["autoreplySet"]["errors"] == []
    await create_team_forward(root)
    refusing_server = FakeSmtpServer(rcpt_replies={"carol": "550 5.1.1 Nobody"})
    async with (
        run_smtp_server(refusing_server) as server,
        run_queue_worker(ada.environment, relay_settings(server)),
    ):
        await deliver_incoming(ada.environment, ada.address, sender="dave@example.com")
        await deliver_incoming(ada.environment, "team@example.org", sender="erin@example.com")
        async with asyncio.timeout(HANG_SECONDS):
            while len(server.messages) < 2:  # noqa: ASYNC110 - a server has no event
                await asyncio.sleep(0.01)
    raw_by_recipient = {mail.to[0]: mail.raw for mail in server.messages}
    assert b"d=example.org;" in raw_by_recipient["dave@example.com"]
    assert b"d=mx.example.org;" in raw_by_recipient["erin@example.com"]
    for raw in raw_by_recipient.values():
        assert dkim_key_operations.verify_with_dkimpy(
            raw, dkim_key_operations.dkim_txt_records(keys)
        ) == [True]
