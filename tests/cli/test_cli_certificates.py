"""Tests of `merganser certificate` and of certificate checks in `merganser doctor`."""

import datetime
from pathlib import Path

import pytest

from tests.support.clients.command_line import CommandLine
from tests.support.operations.platform.certificate_operations import (
    ONE_DAY,
    SERVER_NAME,
    CertificateSigner,
)

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
    assert "ACME: TERMS_NOT_AGREED\n" in result.out
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
        (["set", SERVER_NAME], "--cert FILE or --acme is required."),
        (["set", SERVER_NAME, "--cert", tmp_path / "none"], "Cannot read"),
        (["set", SERVER_NAME, "--cert", cert], "The private key is missing."),
        (
            ["set", SERVER_NAME, "--cert", key, "--key", key],
            "The PEM text has no certificate: it must begin with",
        ),
        (["set", "a b", "--cert", cert, "--key", key], "Not a domain name."),
        (
            ["set", SERVER_NAME, "--acme", "--also", "*.example"],
            "ACME does not support wildcards, since they can't be validated over HTTP.",
        ),
        (
            ["renew", SERVER_NAME],
            f"Certificate not found: {SERVER_NAME}. `merganser certificate list`",
        ),
        (
            ["delete", "own.example", "--revoke", "boredom"],
            "--revoke must be one of unspecified, key-",
        ),
        (
            ["delete", "own.example", "--revoke", "superseded"],
            "The terms of the ACME server are not accepted: set acme.termsAgreed.",
        ),
        (
            ["delete", SERVER_NAME],
            f"Certificate not found: {SERVER_NAME}. `merganser certificate list`",
        ),
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
        (10, "action", f"{SERVER_NAME} expires on"),
        (1, "action", f"{SERVER_NAME} expired on"),
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


def test_doctor_and_list_show_state_and_error_of_acme(shell: CommandLine, tmp_path: Path) -> None:
    cert, key = write_certificate(tmp_path)
    assert shell("certificate", "set", "new.example", "--acme").code == 0
    assert shell("certificate", "set", "old.example", "--cert", cert, "--key", key).code == 0

    def certificate_findings() -> list[tuple[str, str, str]]:
        return [
            (check["verdict"], check["found"], check["remedy"])
            for check in shell("doctor", "--json").json
            if check["subject"] == "certificate"
        ]

    assert certificate_findings() == [
        ("hint", "new.example has no certificate yet", "ACME state TERMS_NOT_AGREED")
    ]
    failure = "DNS has no A or AAAA record of the name: publish one."
    shell.change_store(
        f"UPDATE certificates SET acme = 1, acme_state = 'FAILED', acme_error = '{failure}', "  # noqa: S608
        "acme_failures = 1, acme_next_at = '2031-02-03 04:05:06.000000'"
    )
    remedy = f"ACME state FAILED: {failure}"
    old_until = f"{NOW + 89 * ONE_DAY:%Y-%m-%d}"
    assert certificate_findings() == [
        ("hint", "new.example has no certificate yet", remedy),
        ("hint", f"old.example is valid until {old_until}, and not renewed", remedy),
    ]
    new, old = shell("certificate", "list", "--json").json
    for certificate in (new, old):
        assert (certificate["acme_state"], certificate["acme_error"]) == ("FAILED", failure)
        assert certificate["acme_next_order_at"] == "2031-02-03T04:05:06+00:00"
    row = shell("certificate", "list").out.splitlines()[-1]
    assert row.split(maxsplit=4)[:4] == ["old.example", old_until, "FAILED", "2031-02-03"]
    assert failure in row
    shell.change_store("UPDATE certificates SET acme_state = 'REVOKED', acme_error = NULL")
    assert certificate_findings() == [
        ("action", f"{name} is revoked", "run `merganser certificate delete` again")
        for name in ("new.example", "old.example")
    ]


def test_doctor_checks_certificate_file(shell: CommandLine, tmp_path: Path) -> None:
    cert, _ = write_certificate(tmp_path, 10)
    for file, verdict in ((cert, "action"), (tmp_path / "none", "action")):
        shell.set_settings(tls_cert=str(file))
        checks = shell("doctor", "--json").json
        (file_check,) = (check for check in checks if check["subject"] == "certificate")
        assert file_check["verdict"] == verdict
