"""Authentication-Results fields with our authserv-id are removed on every way into the store."""

import base64
from dataclasses import replace
from pathlib import Path

import pytest

from mail.authentication import remove_own_results
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.import_runs import eml_zip, import_archive, mbox_file
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.operations.bulk_operations import run_message_mutation
from tests.support.operations.connector_operations import (
    add_connector,
    dovecot_account,
    run_connector,
    shared_dovecot,
)
from tests.support.servers.dovecot_server import DovecotAccount

__all__ = ["dovecot_account", "shared_dovecot"]

HEADERS_QUERY = "{ viewer { user { messages(first: 50) { nodes { rawHeader subject } } } } }"
OWN_RESULTS = [  # mx.example.org is the hostname in tests
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
OTHER_RESULTS = [
    "mx.example.net; dkim=pass",
    "(mx.example.org) far.example; dkim=pass",
    "x.mx.example.org; x",
]
OWN_FIELDS = [f"Authentication-Results: {claim}" for claim in OWN_RESULTS] + [
    f"AUTHENTICATION-results : {OWN_RESULTS[0]}",
    f"authentication-results:{OWN_RESULTS[0]}",
]
FORGED_MESSAGE = "\r\n".join(
    [
        *OWN_FIELDS[:4],
        "Received: from far.example by there.example; Tue, 1 Jan 2030 10:00:00 +0000",
        *OWN_FIELDS[4:],
        *(f"Authentication-Results: {other}" for other in OTHER_RESULTS),
        "",
    ]
).encode() + raw_message("Forged", body=f"Authentication-Results: {OWN_RESULTS[0]}")


async def assert_only_other_results_are_stored(client: GraphQLClient, count: int = 1) -> None:
    """Check that the stored messages keep only the fields of other servers."""
    nodes = (await client(HEADERS_QUERY))["viewer"]["user"]["messages"]["nodes"]
    assert len(nodes) == count
    for node in nodes:
        if node["subject"] == "Forged":
            lines = node["rawHeader"].replace("\r\n", "\n").split("\n")
            result_fields = [
                line for line in lines if line.lower().startswith("authentication-results")
            ]
            assert result_fields == [f"Authentication-Results: {other}" for other in OTHER_RESULTS]
            assert "pass" not in "".join(line for line in lines if line[:1] in " \t")


async def test_lmtp_delivery_removes_own_results(
    ada: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await lmtp_client.start_data(ada.address)
    lmtp_client.send_bytes(FORGED_MESSAGE + b".\r\n")
    assert (await lmtp_client.read_reply()).startswith("250")
    await assert_only_other_results_are_stored(ada)


@pytest.mark.parametrize("draft", [False, True])
async def test_upload_removes_own_results(ada: GraphQLClient, *, draft: bool) -> None:
    raw = base64.b64encode(FORGED_MESSAGE).decode()
    arguments = {"mailbox": {"path": "INBOX"}, "raw": raw, "draft": draft}
    assert (await run_message_mutation(ada, "messageImport", **arguments))["errors"] == []
    response = await ada.http.post("/rest/uploads", content=FORGED_MESSAGE, headers=ada.headers)
    arguments = {"mailbox": {"path": "INBOX"}, "rawUpload": response.json()["id"]}
    assert (await run_message_mutation(ada, "messageImport", **arguments))["errors"] == []
    await assert_only_other_results_are_stored(ada, 2)


async def test_import_removes_own_results(ada: GraphQLClient) -> None:
    await import_archive(ada, eml_zip({"a.eml": FORGED_MESSAGE}))
    await assert_only_other_results_are_stored(ada)
    second_import = await import_archive(ada, eml_zip({"a.eml": FORGED_MESSAGE}))
    assert int(second_import["importedCount"]) == 0
    await import_archive(ada, mbox_file([raw_message("Other")]))
    await assert_only_other_results_are_stored(ada, 2)


async def test_connector_removes_own_results(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(FORGED_MESSAGE)
    run = await run_connector(ada.environment, await add_connector(ada, dovecot_account))
    assert run.imported_count == 1, run.log
    await assert_only_other_results_are_stored(ada)


async def test_submission_removes_own_results(ada: GraphQLClient) -> None:
    raw = FORGED_MESSAGE.replace(
        b"From: Carol <carol@example.com>", f"From: {ada.address}".encode()
    )
    document = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
      errors { code path message } } }"""
    arguments = {
        "envelope": {"to": [{"address": "far@example.net"}]},
        "raw": base64.b64encode(raw).decode(),
    }
    assert (await ada(document, input=arguments))["messageSend"]["errors"] == []
    await assert_only_other_results_are_stored(ada)


@pytest.mark.parametrize("in_file", [False, True])
async def test_results_of_a_trusted_server_are_kept_above_its_received_field(
    environment: Environment, tmp_path: Path, *, in_file: bool
) -> None:
    options = replace(environment.options, authserv_ids=("front.example.org",))
    trusted_field = b"Authentication-Results: Front.example.org; spf=pass\r\n"
    own_field = b"Authentication-Results: mx.example.org; spf=pass\r\n"
    received_field = b"Received: by front.example.org\r\n"
    raw = (
        trusted_field
        + own_field
        + received_field
        + trusted_field
        + own_field
        + b"Subject: x\r\n\r\n"
        + trusted_field
    )
    for message, from_trusted_server, expected in (
        (raw, True, trusted_field + received_field + b"Subject: x\r\n\r\n" + trusted_field),
        (raw, False, received_field + b"Subject: x\r\n\r\n" + trusted_field),
        (trusted_field + b"Subject: x\r\n\r\n", True, b"Subject: x\r\n\r\n"),
    ):
        source: bytes | Path = message
        if in_file:
            source = tmp_path / "letter"
            source.write_bytes(message)
        cleaned = await remove_own_results(options, source, from_trusted_server=from_trusted_server)
        assert (cleaned.read_bytes() if isinstance(cleaned, Path) else cleaned) == expected
