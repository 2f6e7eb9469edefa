"""`merganser certificate`, and what the doctor says of certificates."""

import datetime
from pathlib import Path

import pytest

from tests.support.clients.command_line import CommandLine
from tests.support.operations.certificate_operations import DAY, NAME, Signer

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)


def written(folder: Path, days: int = 90) -> tuple[Path, Path]:
    """Files with a certificate that is valid for so many days from yesterday on, and its key."""
    cert, key = Signer().issue(begin=NOW - DAY, days=days)
    files = folder / "mx.pem", folder / "mx.key"
    for file, text in zip(files, (cert, key), strict=True):
        file.write_text(text)
    return files


def test_one_is_set_listed_renewed_and_deleted(shell: CommandLine, tmp_path: Path) -> None:
    cert, key = written(tmp_path)
    said = shell("certificate", "set", NAME, "--cert", cert, "--key", key)
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines()[0] == f"{NAME}: valid until {NOW + 89 * DAY:%Y-%m-%d}"
    assert said.out.splitlines()[1].startswith("TLSA: 3 1 1 ")
    (one,) = shell("certificate", "list", "--json").json
    assert (one["server_name"], one["alt_names"], one["acme"]) == (NAME, [NAME], False)
    said = shell("certificate", "renew", NAME)
    assert said.code == 1
    assert "not renewed by ACME" in said.err
    said = shell("certificate", "set", "other.example", "--acme")
    assert said.code == 0
    assert "none yet" in said.out
    assert "acme.termsAgreed" in said.out
    assert shell("certificate", "renew", "other.example").code == 0
    words = ("--also", "a.example", "--also", "B.example")
    assert shell("certificate", "set", "other.example", "--acme", *words).code == 0
    assert shell("certificate", "set", "other.example", "--acme").code == 0  # they stay
    other = shell("certificate", "list", "--json").json[1]
    assert (other["acme_names"], other["alt_names"]) == (["a.example", "b.example"], [])
    assert "other.example" in shell("certificate", "list").out
    assert shell("certificate", "delete", NAME).code == 0
    assert [one["server_name"] for one in shell("certificate", "list", "--json").json] == [
        "other.example"
    ]


def test_what_goes_wrong_is_said_in_one_line(shell: CommandLine, tmp_path: Path) -> None:
    cert, key = written(tmp_path)
    assert shell("certificate", "set", "own.example", "--cert", cert, "--key", key).code == 0
    for words, text in (
        (["set", NAME], "say --cert FILE, or --acme"),
        (["set", NAME, "--cert", tmp_path / "none"], "cannot read"),
        (["set", NAME, "--cert", cert], "its key is missing"),
        (["set", NAME, "--cert", key, "--key", key], "no certificate stands in it"),
        (["set", "a b", "--cert", cert, "--key", key], "not a domain name"),
        (["set", NAME, "--acme", "--also", "*.example"], "no wildcard"),
        (["renew", NAME], f"there is no certificate for {NAME}"),
        (["delete", "own.example", "--revoke", "boredom"], "--revoke is one of unspecified, key-"),
        (["delete", "own.example", "--revoke", "superseded"], "terms of the authority are not"),
        (["delete", NAME], f"there is no certificate for {NAME}"),
    ):
        said = shell("certificate", *words)
        assert said.code != 0, words
        assert text in said.err
        assert len(said.err.splitlines()) == 1
        assert "PRIVATE" not in said.err
    said = shell("certificate", "set", "www.example", "--cert", cert, "--key", key)
    assert said.code == 0
    assert said.err.startswith("NAME_NOT_IN_CERTIFICATE: ")


@pytest.mark.parametrize(
    ("days", "verdict", "text"),
    [(90, None, ""), (10, "action", f"{NAME} ends on"), (1, "action", f"{NAME} ended on")],
)
def test_the_doctor_tells_of_what_ends_soon(
    shell: CommandLine, tmp_path: Path, days: int, verdict: str | None, text: str
) -> None:
    cert, key = written(tmp_path, days)
    assert shell("certificate", "set", NAME, "--cert", cert, "--key", key).code == 0
    checks = [one for one in shell("doctor", "--json").json if one["subject"] == "certificate"]
    assert [one["verdict"] for one in checks] == ([verdict] if verdict else [])
    assert all(text in one["found"] for one in checks)


def test_the_doctor_looks_at_the_file_too(shell: CommandLine, tmp_path: Path) -> None:
    cert, _ = written(tmp_path, 10)
    for file, verdict in ((cert, "action"), (tmp_path / "none", "action")):
        shell.set_settings(tls_cert=str(file))
        found = shell("doctor", "--json").json
        (one,) = (each for each in found if each["subject"] == "MERGANSER_TLS_CERT")
        assert one["verdict"] == verdict
