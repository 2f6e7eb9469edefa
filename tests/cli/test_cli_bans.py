"""Tests of `merganser ban`."""

import shutil
import subprocess

import pytest

from merganser.commands.throttling.ban_commands import nft_ruleset
from tests.support.clients.command_line import CommandLine


def test_bans_are_added_listed_and_lifted(shell: CommandLine) -> None:
    added = shell(
        "ban", "add", "203.0.113.9/24", "2001:db8::7", "--for", "1 day", "--reason", "spam"
    )
    assert (added.code, added.out) == (0, "Banned networks: 2.\n")
    listed = shell("ban", "list", "--format", "json").json
    assert [(entry["network"], entry["cause"], entry["reason"]) for entry in listed] == [
        ("2001:db8::7/128", "MANUAL", "spam"),
        ("203.0.113.0/24", "MANUAL", "spam"),
    ]
    assert "203.0.113.0/24" in shell("ban", "list").out
    lifted = shell("ban", "lift", "203.0.113.77", "--reason", "wrong client")
    assert lifted.out == "Lifted bans: 1. Deleted counts of failures: 0.\n"
    assert "203.0.113.0/24" not in shell("ban", "list").out
    assert shell("ban", "lift", "203.0.113.77").out.startswith("Lifted bans: 0.")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["add", "x"], "192.0.2.0/24"),
        (["add", "127.0.0.1"], "never banned"),
        (["add", "0.0.0.0/0"], "prefix length"),
        (["add", "203.0.113.7", "--for", "soon"], "--for"),
        (["add", "203.0.113.7", "--for", "1 year"], "--for"),
        (["add", "203.0.113.7", "--for", "1 s"], "PT1M"),
        (["lift", "x"], "192.0.2.0/24"),
        (["list", "--format", "xml"], "--format"),
    ],
)
def test_wrong_arguments_are_refused(shell: CommandLine, arguments: list[str], text: str) -> None:
    result = shell("ban", *arguments)
    assert result.code != 0
    assert text in result.err
    assert "Traceback" not in result.err


def test_nft_ruleset_has_networks_without_overlaps(shell: CommandLine) -> None:
    shell.set_settings(trusted_proxies="10.0.0.0/8 ::1")
    shell("ban", "add", "203.0.113.0/24", "203.0.113.7", "2001:db8::/32")
    ruleset = shell("ban", "list", "--format", "nft").out
    assert "elements = { 203.0.113.0/24 }" in ruleset
    assert "elements = { 2001:db8::/32 }" in ruleset
    assert "10.0.0.0/8" in ruleset
    assert ruleset.index("@accepted4 accept") < ruleset.index("@refused4 drop")
    _check_by_nft(ruleset)


def test_empty_nft_ruleset_is_valid() -> None:
    ruleset = nft_ruleset([], ["127.0.0.0/8", "::1/128"])
    assert "set refused4 {\n    type ipv4_addr; flags interval;\n  }" in ruleset
    _check_by_nft(ruleset)


def _check_by_nft(ruleset: str) -> None:
    """Check the syntax by nft, if it is installed and may be used."""
    nft = shutil.which("nft")
    if nft is None:
        return
    command = ["unshare", "--user", "--map-root-user", "--net", nft, "--check", "--file", "-"]
    result = subprocess.run(command, input=ruleset, text=True, capture_output=True, check=False)
    if "unshare" not in result.stderr and "Operation not permitted" not in result.stderr:
        assert result.returncode == 0, result.stderr
