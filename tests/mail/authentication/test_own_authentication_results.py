"""Authentication-Results in this server's name are removed, whichever way a message comes."""

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from mail.authentication import remove_own_results
from models.runtime.environment import Environment
from tests.conftest import Client, raw_message
from tests.support.accounts.import_runs import eml_zip, imported, mbox
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.operations.bulk_operations import call
from tests.support.operations.connector_operations import connector, far, ran, server
from tests.support.servers.dovecot_server import DovecotAccount

__all__ = ["far", "server"]

HEADERS = "{ viewer { user { messages(first: 50) { nodes { headersText subject } } } } }"
CLAIMS = [  # mx.example.org is the hostname of tests
    "mx.example.org; spf=pass smtp.mailfrom=bank.example; dkim=pass",
    "MX.Example.ORG ; dkim=pass",
    "mx.example.org 1; dkim=pass",
    "mx.example.org (version 1) 1 (really); dkim=pass",
    "(a comment) mx.example.org (another; one) ; dkim=pass",
    '(nested (one \\) ) ) "mx.example.org"; dkim=pass',
    '"MX.\\example.org"; dkim=pass',
    "mx.example.org.; dkim=pass",
    "\r\n mx.example.org;\r\n\tdkim=pass",
    "mx.example.org",
]
OTHERS = [
    "mx.example.net; dkim=pass",
    "(mx.example.org) far.example; dkim=pass",
    "x.mx.example.org; x",
]
FIELDS = [f"Authentication-Results: {claim}" for claim in CLAIMS] + [
    f"AUTHENTICATION-results : {CLAIMS[0]}",
    f"authentication-results:{CLAIMS[0]}",
]
LETTER = "\r\n".join(
    [
        *FIELDS[:4],
        "Received: from far.example by there.example; Tue, 1 Jan 2030 10:00:00 +0000",
        *FIELDS[4:],
        *(f"Authentication-Results: {other}" for other in OTHERS),
        "",
    ]
).encode() + raw_message("Forged", body=f"Authentication-Results: {CLAIMS[0]}")


async def check(client: Client, count: int = 1) -> None:
    """The fields of others are there, and none of ours."""
    nodes = (await client(HEADERS))["viewer"]["user"]["messages"]["nodes"]
    assert len(nodes) == count
    for node in nodes:
        if node["subject"] == "Forged":
            lines = node["headersText"].replace("\r\n", "\n").split("\n")
            found = [line for line in lines if line.lower().startswith("authentication-results")]
            assert found == [f"Authentication-Results: {other}" for other in OTHERS]
            assert "pass" not in "".join(line for line in lines if line[:1] in " \t")


async def test_messages_by_lmtp(ada: Client, neighbour: Neighbour) -> None:
    await neighbour.begin(ada.address)
    neighbour.send(LETTER + b".\r\n")
    assert (await neighbour.hear()).startswith("250")
    await check(ada)


@pytest.mark.parametrize("draft", [False, True])
async def test_uploads(ada: Client, *, draft: bool) -> None:
    raw = base64.b64encode(LETTER).decode()
    given = {"mailbox": {"path": "INBOX"}, "raw": raw, "draft": draft}
    assert (await call(ada, "messageUpload", **given))["errors"] == []
    sent = await ada.http.post("/rest/uploads", content=LETTER, headers=ada.headers)
    given = {"mailbox": {"path": "INBOX"}, "rawUpload": sent.json()["id"]}
    assert (await call(ada, "messageUpload", **given))["errors"] == []
    await check(ada, 2)


async def test_imports(ada: Client) -> None:
    await imported(ada, eml_zip({"a.eml": LETTER}))
    await check(ada)
    one = await imported(ada, eml_zip({"a.eml": LETTER}))
    assert int(one["imported"]) == 0
    await imported(ada, mbox([raw_message("Other")]))
    await check(ada, 2)


async def test_connectors(ada: Client, far: DovecotAccount) -> None:
    far.save_message(LETTER)
    run = await ran(ada.world, await connector(ada, far))
    assert run.imported == 1, run.log
    await check(ada)


async def test_submitted_messages(ada: Client) -> None:
    raw = LETTER.replace(b"From: Carol <carol@example.com>", f"From: {ada.address}".encode())
    send = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
      errors { code path message } } }"""
    given = {
        "envelope": {"to": [{"address": "far@example.net"}]},
        "raw": base64.b64encode(raw).decode(),
    }
    assert (await ada(send, input=given))["messageSend"]["errors"] == []
    await check(ada)


@pytest.mark.parametrize("in_file", [False, True])
async def test_results_of_a_trusted_server_stay_above_the_border(
    world: Environment, tmp_path: Path, *, in_file: bool
) -> None:
    options = replace(world.options, authserv_ids=("front.example.org",))
    ours = b"Authentication-Results: Front.example.org; spf=pass\r\n"
    claim = b"Authentication-Results: mx.example.org; spf=pass\r\n"
    border = b"Received: by front.example.org\r\n"
    raw = ours + claim + border + ours + claim + b"Subject: x\r\n\r\n" + ours
    for given, trusted, kept in (
        (raw, True, ours + border + b"Subject: x\r\n\r\n" + ours),
        (raw, False, border + b"Subject: x\r\n\r\n" + ours),
        (ours + b"Subject: x\r\n\r\n", True, b"Subject: x\r\n\r\n"),
    ):
        source: bytes | Path = given
        if in_file:
            source = tmp_path / "letter"
            source.write_bytes(given)
        found = await remove_own_results(options, source, from_trusted_server=trusted)
        assert (found.read_bytes() if isinstance(found, Path) else found) == kept
