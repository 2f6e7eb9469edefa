"""Authorities that ask for an account outside of ACME (RFC 8555, section 7.3.4)."""

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from models.runtime.environment import Environment
from resolvers.certificates import acme_accounts, acme_worker
from tests.conftest import Client
from tests.support.operations.certificate_operations import NAME, RENEW, put
from tests.support.servers.acme_platforms import placed
from tests.support.stores.counter_check import rows

KEY_ID, HMAC = "kid-1", "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
ASKS: dict[str, Any] = {
    "externalAccountBindingRequired": True,
    "externalAccountMACKeys": {KEY_ID: HMAC},
}


async def test_the_account_is_bound_and_nothing_tells_the_key(
    world: Environment, root: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with placed(world, root, tmp_path, **ASKS) as place:
        place.options(acme_eab_key_id=KEY_ID, acme_eab_hmac=SecretStr(HMAC))
        await put(place.root, serverName=NAME, acme=True)
        assert await acme_worker.process_next_certificate(place.world)
        one = await place.state()
        assert one["acmeState"].startswith("valid"), one
        directory = place.world.options.acme_directory
        server = acme_accounts.acme_server(place.world, directory)
        kept = [
            await rows(world, "SELECT * FROM certificates"),
            await rows(world, "SELECT * FROM acme_accounts"),
        ]
        for said in (caplog.text, repr(server), repr(place.world.options), str(kept), str(one)):
            assert HMAC not in said
    assert "Successful newAccount Binding" in (tmp_path / "pebble" / "log").read_text()


@pytest.mark.parametrize(
    ("key_id", "hmac", "why"),
    [
        ("", None, "asks for an account outside of ACME: set MERGANSER_ACME_EAB_KEY_ID and "
         "MERGANSER_ACME_EAB_HMAC"),
        (KEY_ID, None, "set MERGANSER_ACME_EAB_KEY_ID and MERGANSER_ACME_EAB_HMAC"),
        ("", HMAC, "set MERGANSER_ACME_EAB_KEY_ID and MERGANSER_ACME_EAB_HMAC"),
        ("kid-2", HMAC, "unauthorized: "),
        (KEY_ID, "A" * 43, "unauthorized: "),
    ],
)  # fmt: skip
async def test_what_is_missing_or_wrong_is_said_until_it_is_right(  # noqa: PLR0913, PLR0917
    world: Environment, root: Client, tmp_path: Path, key_id: str, hmac: str | None, why: str
) -> None:
    async with placed(world, root, tmp_path, **ASKS) as place:
        place.options(acme_eab_key_id=key_id, acme_eab_hmac=SecretStr(hmac) if hmac else None)
        one = (await put(place.root, serverName=NAME, acme=True))["certificate"]
        assert await acme_worker.process_next_certificate(place.world)
        state = (await place.state())["acmeState"]
        assert state.startswith("failed, tried again 20"), state
        assert why in state
        assert (hmac or "none") not in state
        assert await rows(world, "SELECT url FROM acme_accounts") == [(None,)]
        place.options(acme_eab_key_id=KEY_ID, acme_eab_hmac=SecretStr(HMAC))
        await place.root(RENEW, input={"ids": [one["id"]]})
        assert await acme_worker.process_next_certificate(place.world)
        assert (await place.state())["acmeState"].startswith("valid")


async def test_one_that_does_not_ask_is_told_nothing(
    world: Environment, root: Client, tmp_path: Path
) -> None:
    async with placed(world, root, tmp_path) as place:
        place.options(acme_eab_key_id="kid-2", acme_eab_hmac=SecretStr("A" * 43))
        await put(place.root, serverName=NAME, acme=True)
        assert await acme_worker.process_next_certificate(place.world)
        assert (await place.state())["acmeState"].startswith("valid")
    assert "newAccount Binding" not in (tmp_path / "pebble" / "log").read_text()
