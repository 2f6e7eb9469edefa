"""Which settings of SMTP go together."""

from pathlib import Path
from typing import Any

import pytest

from merganser.errors import EXIT_USAGE, CommandError
from merganser.server import sockets
from merganser.server.smtp_listeners import check_certificate_available, load_certificate_files
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from tests.support.mail_servers.smtp_client import Authority


def told(**given: Any) -> str:
    """What is said of settings that do not go together."""
    with pytest.raises(CommandError) as found:
        load_certificate_files(Settings(**given))
    assert found.value.exit_code == EXIT_USAGE
    return found.value.message


@pytest.mark.parametrize("name", ["submission", "submissions"])
async def test_submission_takes_a_certificate(
    tmp_path: Path, world: Environment, name: str
) -> None:
    given: Any = {name: "127.0.0.1:587"}
    with pytest.raises(CommandError) as found:
        await check_certificate_available(Settings(**given), world)
    assert (found.value.exit_code, found.value.message) == (
        EXIT_USAGE,
        f"MERGANSER_{name.upper()} takes a certificate: set MERGANSER_TLS_CERT, or store one with "
        "`merganser certificate set`",
    )
    file = Authority(tmp_path).issue()
    await check_certificate_available(Settings(**given, tls_cert=file), world)
    assert load_certificate_files(Settings(**given, tls_cert=file)) is not None
    assert load_certificate_files(Settings(smtp="127.0.0.1:25")) is None


def test_a_certificate_that_cannot_be_used(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.pem"
    begins = f"MERGANSER_TLS_CERT cannot be used: {missing}: "
    assert told(tls_cert=missing) == begins + "No such file or directory"
    missing.write_text("nothing of use")
    assert told(tls_cert=missing).startswith(begins)
    good = Authority(tmp_path).issue()
    assert told(tls_cert=good, tls_key=missing).startswith("MERGANSER_TLS_CERT cannot be used")


def test_places_are_those_that_are_set() -> None:
    place = "0.0.0.0:25"
    assert set(sockets.listen_addresses(Settings())) == {"HTTP", "LMTP"}
    assert sockets.listen_addresses(Settings(smtp=place))["SMTP"] == place
    assert sockets.exposed_settings(Settings(smtp=place)) == ["SMTP"]
