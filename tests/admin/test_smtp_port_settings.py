"""Combinations of SMTP settings."""

from pathlib import Path
from typing import Any

import pytest

from merganser.errors import EXIT_USAGE, CommandError
from merganser.server import sockets
from merganser.server.smtp_listeners import (
    load_certificate_files,
    require_certificate_for_submission,
)
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from tests.support.mail_servers.smtp_client import CertificateAuthority


def certificate_error(**arguments: Any) -> str:
    """Return the message of the command error for these settings."""
    with pytest.raises(CommandError) as raised:
        load_certificate_files(Settings(**arguments))
    assert raised.value.exit_code == EXIT_USAGE
    return raised.value.message


@pytest.mark.parametrize("name", ["submission_listen", "submission_tls_listen"])
async def test_submission_needs_a_certificate(
    tmp_path: Path, environment: Environment, name: str
) -> None:
    arguments: Any = {name: "127.0.0.1:587"}
    with pytest.raises(CommandError) as raised:
        await require_certificate_for_submission(Settings(**arguments), environment)
    assert (raised.value.exit_code, raised.value.message) == (
        EXIT_USAGE,
        f"MERGANSER_{name.upper()} requires a certificate: set MERGANSER_TLS_CERT, or store one "
        "with `merganser certificate set`.",
    )
    certificate_file = CertificateAuthority(tmp_path).issue_certificate()
    await require_certificate_for_submission(
        Settings(**arguments, tls_cert=certificate_file), environment
    )
    assert load_certificate_files(Settings(**arguments, tls_cert=certificate_file)) is not None
    assert load_certificate_files(Settings(smtp_listen="127.0.0.1:25")) is None


def test_unusable_certificate_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere.pem"
    prefix = f"MERGANSER_TLS_CERT cannot be used: {missing}: "
    assert certificate_error(tls_cert=missing) == prefix + "No such file or directory."
    missing.write_text("nothing of use")
    assert certificate_error(tls_cert=missing).startswith(prefix)
    certificate_file = CertificateAuthority(tmp_path).issue_certificate()
    assert certificate_error(tls_cert=certificate_file, tls_key=missing).startswith(
        "MERGANSER_TLS_CERT cannot be used"
    )


def test_listen_addresses_follow_the_settings() -> None:
    address = "0.0.0.0:25"
    assert set(sockets.listen_addresses(Settings())) == {"HTTP", "LMTP"}
    assert sockets.listen_addresses(Settings(smtp_listen=address))["SMTP"] == address
    assert sockets.exposed_listener_names(Settings(smtp_listen=address)) == ["SMTP"]
