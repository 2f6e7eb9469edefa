"""ACME authorities that require an external account binding (RFC 8555, section 7.3.4)."""

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from models.runtime.environment import Environment
from resolvers.certificates import acme_accounts, acme_worker
from tests.conftest import GraphQLClient
from tests.support.operations.platform.certificate_operations import (
    CERTIFICATE_RENEW,
    SERVER_NAME,
    set_certificate,
)
from tests.support.servers.acme.acme_platforms import run_acme_platform
from tests.support.stores.counter_check import select_rows

KEY_ID, HMAC = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
BINDING_REQUIRED: dict[str, Any] = {
    "externalAccountBindingRequired": True,
    "externalAccountMACKeys": {KEY_ID: HMAC},
}


async def test_account_is_bound_and_hmac_key_is_not_disclosed(
    environment: Environment, root: GraphQLClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with run_acme_platform(environment, root, tmp_path, **BINDING_REQUIRED) as platform:
        platform.set_options(acme_eab_key_id=KEY_ID, acme_eab_hmac=SecretStr(HMAC))
        await set_certificate(platform.root, serverName=SERVER_NAME, acme=True)
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        certificate = await platform.load_certificate()
        assert certificate["acmeState"] == "VALID", certificate
        directory = platform.environment.options.acme_directory
        server = acme_accounts.acme_server(platform.environment, directory)
        stored_rows = [
            await select_rows(environment, "SELECT * FROM certificates"),
            await select_rows(environment, "SELECT * FROM acme_accounts"),
        ]
        for output in (
            caplog.text,
            repr(server),
            repr(platform.environment.options),
            str(stored_rows),
            str(certificate),
        ):
            assert HMAC not in output
        assert "Successful newAccount Binding" in platform.pebble_log


@pytest.mark.parametrize(
    ("key_id", "hmac", "reason"),
    [
        ("", None, "The ACME server requires an external account: set MERGANSER_ACME_EAB_KEY_ID "
         "and MERGANSER_ACME_EAB_HMAC."),
        (KEY_ID, None, "set MERGANSER_ACME_EAB_KEY_ID and MERGANSER_ACME_EAB_HMAC"),
        ("", HMAC, "set MERGANSER_ACME_EAB_KEY_ID and MERGANSER_ACME_EAB_HMAC"),
        ("kid-2", HMAC, "unauthorized: "),
        (KEY_ID, "A" * 43, "unauthorized: "),
    ],
)  # fmt: skip
async def test_missing_or_wrong_binding_key_is_reported_until_corrected(  # noqa: PLR0913, PLR0917
    environment: Environment,
    root: GraphQLClient,
    tmp_path: Path,
    key_id: str,
    hmac: str | None,
    reason: str,
) -> None:
    async with run_acme_platform(environment, root, tmp_path, **BINDING_REQUIRED) as platform:
        platform.set_options(
            acme_eab_key_id=key_id, acme_eab_hmac=SecretStr(hmac) if hmac else None
        )
        certificate = (await set_certificate(platform.root, serverName=SERVER_NAME, acme=True))[
            "certificate"
        ]
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        failed = await platform.load_certificate()
        assert failed["acmeState"] == "FAILED"
        assert reason in failed["acmeError"]
        assert (hmac or "none") not in failed["acmeError"]
        assert await select_rows(environment, "SELECT url FROM acme_accounts") == [(None,)]
        platform.set_options(acme_eab_key_id=KEY_ID, acme_eab_hmac=SecretStr(HMAC))
        await platform.root(CERTIFICATE_RENEW, input={"certificates": [{"id": certificate["id"]}]})
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await platform.load_certificate())["acmeState"] == "VALID"


async def test_binding_key_is_not_sent_if_server_does_not_require_it(
    environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    async with run_acme_platform(environment, root, tmp_path) as platform:
        platform.set_options(acme_eab_key_id="kid-2", acme_eab_hmac=SecretStr("A" * 43))
        await set_certificate(platform.root, serverName=SERVER_NAME, acme=True)
        assert await acme_worker.order_or_query_next_due_certificate(platform.environment)
        assert (await platform.load_certificate())["acmeState"] == "VALID"
        assert "newAccount Binding" not in platform.pebble_log
