"""Tests of `merganser connector`: list, check and run connectors, and show their log."""

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from rich.filesize import decimal

from bench.servers.ports import free_port
from graph.types.global_ids import encode
from merganser.commands.users import user_operations
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import read_settings
from models.connectors import ConnectorProtocol, ConnectorSecurity
from resolvers.connectors import mutations as connector_mutations
from tests.conftest import raw_message
from tests.support.clients.command_line import CommandLine
from tests.support.clients.terminal_commands import run_on_terminal
from tests.support.mail_servers.smtp_client import CertificateAuthority
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount, run_dovecot
from tests.support.servers.forked_process import ForkedProcess, ProcessStreams, run_forked

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0  # seconds, on a busy machine
POLL_INTERVAL = 0.02  # seconds
MESSAGE_BYTES = 40_000  # bytes of a large message


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificateAuthority:
    return CertificateAuthority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def remote_account(authority: CertificateAuthority) -> Iterator[DovecotAccount]:
    certificate_and_key = authority.issue_certificate("localhost")
    with TemporaryDirectory() as folder_name:  # folders of pytest are readable only by the owner
        folder = Path(folder_name)
        folder.chmod(0o755)
        with run_dovecot(
            folder / "dovecot", certificate_and_key=(certificate_and_key, certificate_and_key)
        ) as account:
            yield account


@pytest.fixture
def connector_shell(ada: CommandLine) -> CommandLine:
    """A command line with the user ada, where connectors can fetch from this machine."""
    ada.set_settings(connectors_allow_private_networks="1")
    return ada


def create_connector(remote_account: DovecotAccount, username: str, **extra: Any) -> str:
    """Create a connector of ada without an interval and return its ID."""

    async def insert_connector() -> str:
        async with open_environment(read_settings()) as environment:
            user = await user_operations.find_user_id_or_fail_command(
                environment, extra.pop("user", "ada")
            )
            password = extra.pop("password", PASSWORD)
            connector_input = {
                "name": "far",
                "protocol": ConnectorProtocol.IMAP,
                "security": ConnectorSecurity.NONE,
                "host": "localhost",
                "port": remote_account.ports["imap"],
                "auth_mechanism": "PLAIN",
                "username": username,
                **extra,
            }
            connector_id = await connector_mutations.create_connector(
                root_context(environment), user, connector_input, password
            )
            return encode("Connector", connector_id)

    return asyncio.run(insert_connector())


def create_large_mailboxes(remote_account: DovecotAccount, username: str, folders: int = 6) -> None:
    """Create mailboxes with one large message each."""
    for number in range(folders):
        raw = raw_message(f"Large {number}") + b"x" * 70 * (MESSAGE_BYTES // 70)
        remote_account.for_user(username).save_message(raw, f"Box {number}")


class ConnectorCommand:
    """`merganser connector` in a forked process."""

    def __init__(self, *words: str) -> None:
        self._folder = TemporaryDirectory()
        self._out, self._err = (Path(self._folder.name) / name for name in ("out", "err"))
        self._process = ForkedProcess(
            ["connector", *words], os.environ, ProcessStreams(self._out, self._err)
        )
        self.poll, self.kill = self._process.poll, self._process.kill
        self.send_signal = self._process.send_signal

    def wait(self, timeout: float = PATIENCE) -> tuple[int, str, str]:
        """Wait for the end of the process and return its exit code, stdout and stderr."""
        try:
            code = self._process.wait(timeout)
            return code, self._out.read_text(), self._err.read_text()
        finally:
            self._process.kill()
            self._folder.cleanup()


def wait_for_rows(shell: CommandLine, query: str) -> None:
    """Wait until the query returns rows."""
    for _ in range(int(PATIENCE / POLL_INTERVAL)):
        if shell.read_rows(query):
            return
        time.sleep(POLL_INTERVAL)
    raise AssertionError(shell.read_rows("SELECT * FROM connector_runs"))


RUNNING_QUERY = "SELECT 1 FROM connector_runs WHERE state = 'RUNNING' AND imported_count > 0"


def message_subjects(shell: CommandLine) -> list[str]:
    return [row[0] for row in shell.read_rows("SELECT subject FROM messages ORDER BY subject")]


def test_run_imports_new_messages_and_reports_counts(
    connector_shell: CommandLine, remote_account: DovecotAccount
) -> None:
    for subject in ("One", "Two"):
        remote_account.for_user("run").save_message(raw_message(subject))
    remote_account.for_user("run").save_message(raw_message("Three"), "Work")
    connector_id = create_connector(remote_account, "run")
    trial_result = connector_shell("connector", "run", connector_id, "--dry-run")
    assert trial_result.code == 0, trial_result.err
    assert trial_result.out.startswith(
        "far: 3 messages would be imported, 0 skipped, 0 deleted on the server"
    )
    assert message_subjects(connector_shell) == []
    result = connector_shell("connector", "run", "far")  # by the name of the connector
    assert (result.code, message_subjects(connector_shell)) == (0, ["One", "Three", "Two"]), (
        result.err
    )
    ((size,),) = connector_shell.read_rows("SELECT sum(size) FROM messages")
    expected_prefix = (
        f"far: 3 messages imported, 0 skipped, 0 deleted on the server; {decimal(size)} in "
    )
    assert re.fullmatch(re.escape(expected_prefix) + r"\d+\.\d s\.\n", result.out)
    second_result = connector_shell("connector", "run", connector_id, "--json")
    (run,) = second_result.json
    assert (run["id"], run["name"], run["state"]) == (connector_id, "far", "SUCCEEDED")
    assert (run["seen_count"], run["imported_count"], run["size"]) == (3, 0, 0)
    assert run["run"].startswith("crn_")
    lines = connector_shell("connector", "log", connector_id).out.splitlines()
    assert "signed in" in lines[1]
    assert lines[-1].endswith("3 seen, 0 imported, 0 skipped")


def test_several_connectors_run_in_order_and_failure_is_reported(
    connector_shell: CommandLine, remote_account: DovecotAccount
) -> None:
    remote_account.for_user("several").save_message(raw_message("Mine"))
    working_id = create_connector(remote_account, "several")
    failing_id = create_connector(remote_account, "several", name="bad", password="wrong")  # noqa: S106
    result = connector_shell("connector", "run", failing_id, working_id, failing_id)
    assert result.code == 1
    lines = result.err.splitlines() + result.out.splitlines()
    failure_line, count_line, *_ = [line for line in lines if line.startswith("bad: ")]
    assert failure_line.startswith("bad: failed at LOGIN: ")
    assert "Authentication failed" in failure_line
    assert count_line.startswith("bad: 0 messages imported")
    assert "far: 1 messages imported" in result.out
    assert message_subjects(connector_shell) == ["Mine"]
    (row,) = connector_shell("connector", "list", "--failing", "--json").json
    assert (row["name"], row["failures"], row["user"]) == ("bad", 1, "ada")
    assert "Authentication failed" in row["error"]
    assert PASSWORD not in result.out + result.err


def test_run_does_not_run_other_due_connectors(
    connector_shell: CommandLine, remote_account: DovecotAccount
) -> None:
    remote_account.for_user("due").save_message(raw_message("Mine"))
    create_connector(remote_account, "due", name="due", interval=timedelta(minutes=5))
    connector_id = create_connector(remote_account, "due", name="asked", active=False)
    assert connector_shell("connector", "run", connector_id).code == 0
    query = "SELECT name FROM connector_runs r JOIN connectors c ON c.id = connector_id"
    assert connector_shell.read_rows(query) == [("asked",)]
    assert message_subjects(connector_shell) == ["Mine"]


def test_connectors_are_listed_by_user_and_state(
    connector_shell: CommandLine, remote_account: DovecotAccount
) -> None:
    assert connector_shell("user", "add", "bob", "--no-address", "--no-password").code == 0
    ids = [create_connector(remote_account, "x", name=f"c{number}") for number in range(2)]
    other_id = create_connector(remote_account, "y", name="c9", user="bob", active=False)
    assert [row["id"] for row in connector_shell("connector", "list", "--json").json] == [
        *ids,
        other_id,
    ]
    assert [
        row["name"] for row in connector_shell("connector", "list", "-u", "bob", "--json").json
    ] == ["c9"]
    assert connector_shell("connector", "list", "--failing", "--json").json == []
    assert len(connector_shell("connector", "list", "--working", "--json").json) == 3
    result = connector_shell("connector", "list", "--user", "bob")
    assert (result.code, len(result.out.splitlines())) == (0, 2)
    assert re.search(rf"{other_id} +c9 +bob +IMAP +localhost:\d+ +no +never", result.out)
    output = connector_shell("connector", "list", "--json").out
    assert "secret" not in output
    assert PASSWORD not in output


@pytest.mark.parametrize("subcommand", ["check", "run", "log"])
def test_unknown_connector_is_reported_in_one_line(
    connector_shell: CommandLine, remote_account: DovecotAccount, subcommand: str
) -> None:
    for number in range(2):
        create_connector(
            remote_account, "x", name="twin", port=remote_account.ports["imap"] + number
        )
    for reference, error_text in (
        ("con_AZpSKEwoAAE", "Connector not found: con_AZpSKEwoAAE. `merganser connector list`"),
        ("nothing", "Connector not found: nothing."),
        ("usr_AZpSKEwoAAE", "Connector not found: usr_AZpSKEwoAAE."),
        ("twin", "2 connectors have the name twin: use the ID."),
    ):
        result = connector_shell("connector", subcommand, reference)
        assert (result.code, result.out) == (1, "")
        assert result.err.startswith(f"merganser: {error_text}")
        assert result.err.count("\n") == 1
    assert connector_shell.read_rows("SELECT count(*) FROM connector_runs") == [(0,)]


def test_connector_without_run_has_no_log(
    connector_shell: CommandLine, remote_account: DovecotAccount
) -> None:
    create_connector(remote_account, "x", name="new")
    result = connector_shell("connector", "log", "new")
    assert (result.code, result.err) == (1, "merganser: new has not run yet.\n")


def parse_stages(out: str) -> list[tuple[str, str]]:
    matches = re.findall(r"^(ok|failed) +(\S+)", out, re.MULTILINE)
    return [(outcome, stage) for outcome, stage in matches]


def test_check_reports_each_stage(
    connector_shell: CommandLine, remote_account: DovecotAccount, authority: CertificateAuthority
) -> None:
    remote_account.for_user("check").save_message(raw_message("One"), "Work")
    create_connector(remote_account, "check")
    result = connector_shell("connector", "check", "far")
    assert result.code == 0, result.err
    plain_stages = ["name", "connection", "greeting", "login", "mailboxes"]
    assert parse_stages(result.out) == [("ok", stage) for stage in plain_stages]
    assert "\n  Work\n" in result.out
    assert "IMAP4REV1" in result.out.upper()
    connector_id = create_connector(
        remote_account,
        "check",
        name="tls",
        security=ConnectorSecurity.TLS,
        port=remote_account.ports["imaps"],
    )
    tls_stages = ["name", "connection", "TLS", "greeting", "login", "mailboxes"]
    result = connector_shell("connector", "check", connector_id)  # no program trusts this authority
    assert result.code == 1
    assert parse_stages(result.out) == [("ok", "name"), ("ok", "connection"), ("failed", "TLS")]
    trusted = authority.folder / "ca.pem"
    trusted.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    env = {**os.environ, "SSL_CERT_FILE": str(trusted)}
    process = run_forked(["connector", "check", connector_id], env)
    assert process.returncode == 0, process.stderr
    assert parse_stages(process.stdout) == [("ok", stage) for stage in tls_stages]


def test_check_ends_at_failed_stage(
    connector_shell: CommandLine, remote_account: DovecotAccount
) -> None:
    create_connector(remote_account, "x", name="wrong", password="wrong")  # noqa: S106
    result = connector_shell("connector", "check", "wrong")
    assert result.code == 1
    assert parse_stages(result.out)[-2:] == [("ok", "greeting"), ("failed", "login")]
    assert "Authentication failed" in result.out
    create_connector(remote_account, "x", name="closed", port=free_port())
    result = connector_shell("connector", "check", "closed", "--json")
    assert (result.code, result.json["ok"]) == (1, False)
    assert [(stage["stage"], stage["ok"]) for stage in result.json["stages"]] == [
        ("RESOLVE", True), ("CONNECT", False)
    ]  # fmt: skip
    create_connector(
        remote_account,
        "x",
        name="pop",
        protocol=ConnectorProtocol.POP3,
        port=remote_account.ports["pop3"],
    )
    result = connector_shell("connector", "check", "pop")
    assert (result.code, parse_stages(result.out)[-1]) == (0, ("ok", "login")), result.out
    connector_shell.set_settings(connectors_allow_private_networks="")
    result = connector_shell("connector", "check", "wrong")
    assert (result.code, parse_stages(result.out)) == (1, [("failed", "connection")])
    assert "Connections without TLS are no longer allowed" in result.out
    assert connector_shell.read_rows("SELECT count(*) FROM connector_runs") == [(0,)]


def test_ctrl_c_ends_run_at_safe_point(
    connector_shell: CommandLine, remote_account: DovecotAccount
) -> None:
    create_large_mailboxes(remote_account, "slow")
    connector_id = create_connector(remote_account, "slow", max_bytes_per_second=MESSAGE_BYTES)
    other_id = create_connector(remote_account, "slow", name="later")
    process = ConnectorCommand("run", connector_id, other_id)
    wait_for_rows(connector_shell, RUNNING_QUERY)
    process.send_signal(signal.SIGINT)
    code, out, err = process.wait()
    assert code == 130, err
    assert "The run ends at the next safe point" in err
    assert "far: cancelled before all messages were fetched" in err
    assert "later" not in out + err
    query = "SELECT state, imported_count FROM connector_runs"
    ((state, imported),) = connector_shell.read_rows(query)
    assert state == "CANCELLED"
    assert 0 < imported < 6
    assert connector_shell.read_rows("SELECT count(*) FROM messages") == [(imported,)]
    assert out.startswith(f"far: {imported} messages imported")
    assert connector_shell.read_rows("SELECT count(*) FROM connectors WHERE lease IS NOT NULL") == [
        (0,)
    ]
    connector_shell.change_store("UPDATE connectors SET max_bytes_per_second = NULL")
    result = connector_shell("connector", "run", connector_id)
    assert (result.code, message_subjects(connector_shell)) == (
        0,
        [f"Large {number}" for number in range(6)],
    ), result.err
    assert f"{6 - imported} messages imported" in result.out


def test_second_ctrl_c_ends_command_immediately(
    connector_shell: CommandLine, remote_account: DovecotAccount
) -> None:
    remote_account.for_user("twice").save_message(raw_message("Large") + b"x" * 70 * 20_000)
    connector_id = create_connector(remote_account, "twice", max_bytes_per_second=10_000)
    process = ConnectorCommand("run", connector_id)
    wait_for_rows(
        connector_shell, "SELECT 1 FROM connector_runs WHERE state = 'RUNNING' AND folder = 'INBOX'"
    )
    process.send_signal(signal.SIGINT)
    wait_for_rows(connector_shell, "SELECT 1 FROM connector_runs WHERE cancelled")
    process.send_signal(signal.SIGINT)
    code, out, err = process.wait(10)
    assert (code, out) == (130, ""), err
    assert err.splitlines()[-1].startswith("merganser: Left at once.")


def test_run_of_other_process_is_followed(
    connector_shell: CommandLine, remote_account: DovecotAccount
) -> None:
    create_large_mailboxes(remote_account, "follow")
    connector_id = create_connector(remote_account, "follow", max_bytes_per_second=MESSAGE_BYTES)
    first = ConnectorCommand("run", connector_id)
    wait_for_rows(connector_shell, RUNNING_QUERY)
    result = connector_shell("connector", "run", connector_id, "--json")
    code, out, err = first.wait()
    assert (code, result.code) == (0, 0), err
    assert "far: another process runs it; following it" in result.err
    assert result.json[0]["imported_count"] == 6
    assert out.startswith("far: 6 messages imported")
    assert re.search(r"^far: Box \d; [345] of [3456] imported, \d+\.\d kB$", err, re.MULTILINE), err
    assert connector_shell.read_rows("SELECT count(*) FROM connector_runs") == [(1,)]
    assert message_subjects(connector_shell) == [f"Large {number}" for number in range(6)]


def test_run_of_killed_process_is_taken_over(
    connector_shell: CommandLine, remote_account: DovecotAccount
) -> None:
    create_large_mailboxes(remote_account, "died")
    connector_id = create_connector(remote_account, "died", max_bytes_per_second=MESSAGE_BYTES)
    first = ConnectorCommand("run", connector_id)
    wait_for_rows(connector_shell, RUNNING_QUERY)
    first.kill()
    assert first.wait()[0] == -signal.SIGKILL
    second = ConnectorCommand("run", connector_id)
    time.sleep(1)
    assert second.poll() is None  # the lease of the first process is not yet stale
    connector_shell.change_store("UPDATE connectors SET max_bytes_per_second = NULL")
    code, out, err = second.wait()
    assert code == 0, err
    assert "6 messages imported" in out
    assert connector_shell.read_rows("SELECT count(*), max(state) FROM connector_runs") == [
        (1, "SUCCEEDED")
    ]
    assert message_subjects(connector_shell) == [f"Large {number}" for number in range(6)]


@pytest.mark.usefixtures("connector_shell")
def test_terminal_shows_progress_bar(remote_account: DovecotAccount, tmp_path: Path) -> None:
    create_large_mailboxes(remote_account, "bar", 3)
    connector_id = create_connector(remote_account, "bar", max_bytes_per_second=MESSAGE_BYTES)
    result = run_on_terminal(tmp_path / "out", "connector", "run", connector_id)
    assert result.code == 0, result.err
    assert len(set(re.findall(r"far: Box \d", result.err))) == 3
    expected = r"far: Box \d .* 2 of [23] imported, \d+\.\d kB, \d+\.\d kB/s"
    assert re.search(expected, result.err), result.err
    assert result.out.startswith("far: 3 messages imported")


@pytest.mark.parametrize("subcommand", ["list", "check", "run", "log"])
def test_help_has_an_example_of_command(shell_without_store: CommandLine, subcommand: str) -> None:
    assert (
        f"Example: merganser connector {subcommand}"
        in shell_without_store("connector", subcommand, "--help").out
    )
