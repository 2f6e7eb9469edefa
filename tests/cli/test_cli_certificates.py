"""Tests of `merganser certificate` and of certificate checks in `merganser doctor`."""

import datetime
from pathlib import Path

import pytest

from tests.support.clients.command_line import CommandLine
from tests.support.operations.certificate_operations import ONE_DAY, SERVER_NAME, CertificateSigner

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def write_certificate(folder: Path, days: int = 90) -> tuple[Path, Path]:
    """Write a certificate that begins yesterday and is valid for `days`, and its key."""
    cert, key = CertificateSigner().issue_certificate(begin=NOW - ONE_DAY, days=days)
    files = folder / "mx.pem", folder / "mx.key"
    for file, text in zip(files, (cert, key), strict=True):
        file.write_text(text)
    return files


def test_certificate_is_set_listed_renewed_and_deleted(shell: CommandLine, tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    result = shell("certificate", "set", SERVER_NAME, "--cert", cert, "--key", key)
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[0] == f"{SERVER_NAME}: valid until {NOW + 89 * ONE_DAY:%Y-%m-%d}"
    assert result.out.splitlines()[1].startswith("TLSA: 3 1 1 ")
    (certificate,) = shell("certificate", "list", "--json").json
    assert (certificate["server_name"], certificate["alt_names"], certificate["acme"]) == (
        SERVER_NAME,
        [SERVER_NAME],
        False,
    )
    result = shell("certificate", "renew", SERVER_NAME)
    assert result.code == 1
    assert "does not renew this certificate" in result.err
    result = shell("certificate", "set", "other.example", "--acme")
    assert result.code == 0
    assert "none yet" in result.out
    assert "acme.termsAgreed" in result.out
    assert shell("certificate", "renew", "other.example").code == 0
    arguments = ("--also", "a.example", "--also", "B.example")
    assert shell("certificate", "set", "other.example", "--acme", *arguments).code == 0
    assert shell("certificate", "set", "other.example", "--acme").code == 0  # the names are kept
    other = shell("certificate", "list", "--json").json[1]
    assert (other["acme_names"], other["alt_names"]) == (["a.example", "b.example"], [])
    assert "other.example" in shell("certificate", "list").out
    assert shell("certificate", "delete", SERVER_NAME).code == 0
    assert [
        certificate["server_name"] for certificate in shell("certificate", "list", "--json").json
    ] == ["other.example"]


def test_certificate_errors_are_reported_in_one_line(shell: CommandLine, tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    assert shell("certificate", "set", "own.example", "--cert", cert, "--key", key).code == 0
    for arguments, error_text in (
        (["set", SERVER_NAME], "say --cert FILE, or --acme"),
        (["set", SERVER_NAME, "--cert", tmp_path / "none"], "cannot read"),
        (["set", SERVER_NAME, "--cert", cert], "its key is missing"),
        (["set", SERVER_NAME, "--cert", key, "--key", key], "no certificate stands in it"),
        (["set", "a b", "--cert", cert, "--key", key], "not a domain name"),
        (["set", SERVER_NAME, "--acme", "--also", "*.example"], "no wildcard"),
        (["renew", SERVER_NAME], f"there is no certificate for {SERVER_NAME}"),
        (["delete", "own.example", "--revoke", "boredom"], "--revoke is one of unspecified, key-"),
        (["delete", "own.example", "--revoke", "superseded"], "terms of the authority are not"),
        (["delete", SERVER_NAME], f"there is no certificate for {SERVER_NAME}"),
    ):
        result = shell("certificate", *arguments)
        assert result.code != 0, arguments
        assert error_text in result.err
        assert len(result.err.splitlines()) == 1
        assert "PRIVATE" not in result.err
    result = shell("certificate", "set", "www.example", "--cert", cert, "--key", key)
    assert result.code == 0
    assert result.err.startswith("NAME_NOT_IN_CERTIFICATE: ")


@pytest.mark.parametrize(
    ("days", "verdict", "text"),
    [
        (90, None, ""),
        (10, "action", f"{SERVER_NAME} ends on"),
        (1, "action", f"{SERVER_NAME} ended on"),
    ],
)
def test_doctor_reports_certificate_that_expires_soon(
    shell: CommandLine, tmp_path: Path, days: int, verdict: str | None, text: str
) -> None:
    cert, key = write_certificate(tmp_path, days)
    assert shell("certificate", "set", SERVER_NAME, "--cert", cert, "--key", key).code == 0
    checks = [
        check for check in shell("doctor", "--json").json if check["subject"] == "certificate"
    ]
    assert [check["verdict"] for check in checks] == ([verdict] if verdict else [])
    assert all(text in check["found"] for check in checks)


def test_doctor_checks_certificate_file(shell: CommandLine, tmp_path: Path) -> None:
    cert, _ = write_certificate(tmp_path, 10)
    for file, verdict in ((cert, "action"), (tmp_path / "none", "action")):
        shell.set_settings(tls_cert=str(file))
        checks = shell("doctor", "--json").json
        (file_check,) = (check for check in checks if check["subject"] == "MERGANSER_TLS_CERT")
        assert file_check["verdict"] == verdict
