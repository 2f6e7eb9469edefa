"""`merganser connector`: accounts elsewhere listed, checked, run and told of."""

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from rich.filesize import decimal

from bench.servers.ports import free_port
from graph.types.global_ids import encode
from merganser.commands import user_operations
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import read_settings
from models.connectors import ConnectorProtocol, ConnectorSecurity
from resolvers.connectors import mutations as connector_mutations
from tests.conftest import raw_message
from tests.support.clients.command_line import CommandLine
from tests.support.mail_servers.smtp_client import Authority
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount, dovecot
from tests.support.servers.forked_process import ForkedProcess, Streams, run_forked

ROOT = Path(__file__).parents[2]
PATIENCE = 90.0  # seconds, on a busy machine
PIECE = 40_000  # bytes of a large message


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def far(authority: Authority) -> Iterator[DovecotAccount]:
    both = authority.issue("localhost")
    with TemporaryDirectory() as name:  # pytest closes its own folders to all but us
        folder = Path(name)
        folder.chmod(0o755)
        with dovecot(folder / "dovecot", certificate_and_key=(both, both)) as made:
            yield made


@pytest.fixture
def near(ada: CommandLine) -> CommandLine:
    """A shell with ada, who may fetch from this machine."""
    ada.set_settings(connectors_private="1")
    return ada


def made(far: DovecotAccount, username: str, **more: Any) -> str:
    """A connector of ada's, which runs only when it is asked to; its id."""

    async def make() -> str:
        async with open_environment(read_settings()) as world:
            user = await user_operations.user_id_of_name(world, more.pop("user", "ada"))
            word = more.pop("password", PASSWORD)
            given = {
                "name": "far",
                "protocol": ConnectorProtocol.IMAP,
                "security": ConnectorSecurity.PLAIN,
                "host": "localhost",
                "port": far.ports["imap"],
                "mechanism": "PLAIN",
                "username": username,
                **more,
            }
            key = await connector_mutations.create_connector(root_context(world), user, given, word)
            return encode("Connector", key)

    return asyncio.run(make())


def spread(far: DovecotAccount, username: str, folders: int = 6) -> None:
    """Folders with a large message each."""
    for number in range(folders):
        raw = raw_message(f"Large {number}") + b"x" * 70 * (PIECE // 70)
        far.for_user(username).save_message(raw, f"Box {number}")


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "merganser", "connector", *words]


class ConnectorCommand:
    """`merganser connector` that runs in a fork."""

    def __init__(self, *words: str) -> None:
        self._folder = TemporaryDirectory()
        self._out, self._err = (Path(self._folder.name) / name for name in ("out", "err"))
        self._process = ForkedProcess(
            ["connector", *words], os.environ, Streams(self._out, self._err)
        )
        self.poll, self.kill = self._process.poll, self._process.kill
        self.send_signal = self._process.send_signal

    def wait(self, timeout: float = PATIENCE) -> tuple[int, str, str]:
        """Wait for the end; the exit code, and what it has said."""
        try:
            code = self._process.wait(timeout)
            return code, self._out.read_text(), self._err.read_text()
        finally:
            self._process.kill()
            self._folder.cleanup()


def until(shell: CommandLine, asked: str) -> None:
    """Wait until a select finds something."""
    end = time.monotonic() + PATIENCE
    while not shell.read_rows(asked):
        assert time.monotonic() < end, shell.read_rows("SELECT * FROM connector_runs")
        time.sleep(0.02)


COMING = "SELECT 1 FROM connector_runs WHERE state = 'RUNNING' AND imported > 0"


def subjects(shell: CommandLine) -> list[str]:
    return [row[0] for row in shell.read_rows("SELECT subject FROM messages ORDER BY subject")]


def test_a_run_brings_what_is_new_and_says_what(near: CommandLine, far: DovecotAccount) -> None:
    for subject in ("One", "Two"):
        far.for_user("run").save_message(raw_message(subject))
    far.for_user("run").save_message(raw_message("Three"), "Work")
    key = made(far, "run")
    trial = near("connector", "run", key, "--trial")
    assert trial.code == 0, trial.err
    assert trial.out.startswith("far: 3 messages would be brought, 0 left out, 0 deleted elsewhere")
    assert subjects(near) == []
    said = near("connector", "run", "far")  # by its name
    assert (said.code, subjects(near)) == (0, ["One", "Three", "Two"]), said.err
    ((size,),) = near.read_rows("SELECT sum(size) FROM messages")
    came = f"far: 3 messages brought, 0 left out, 0 deleted elsewhere; {decimal(size)} in "
    assert re.fullmatch(re.escape(came) + r"\d+\.\d s\.\n", said.out)
    again = near("connector", "run", key, "--json")
    (found,) = again.json
    assert (found["id"], found["name"], found["state"]) == (key, "far", "SUCCEEDED")
    assert (found["seen"], found["imported"], found["bytes"]) == (3, 0, 0)
    assert found["run"].startswith("crn_")
    lines = near("connector", "log", key).out.splitlines()
    assert "signed in" in lines[1]
    assert lines[-1].endswith("3 seen, 0 brought, 0 left out")


def test_several_run_one_after_another_and_a_failure_is_told(
    near: CommandLine, far: DovecotAccount
) -> None:
    far.for_user("several").save_message(raw_message("Mine"))
    good, bad = made(far, "several"), made(far, "several", name="bad", password="wrong")  # noqa: S106
    said = near("connector", "run", bad, good, bad)
    assert said.code == 1
    failed, came, *_ = [line for line in said.err.splitlines() + said.out.splitlines()
                        if line.startswith("bad: ")]  # fmt: skip
    assert failed.startswith("bad: failed at LOGIN: ")
    assert "Authentication failed" in failed
    assert came.startswith("bad: 0 messages brought")
    assert "far: 1 messages brought" in said.out
    assert subjects(near) == ["Mine"]
    (row,) = near("connector", "list", "--failing", "--json").json
    assert (row["name"], row["failures"], row["user"]) == ("bad", 1, "ada")
    assert "Authentication failed" in row["error"]
    assert PASSWORD not in said.out + said.err


def test_others_that_are_due_are_left_to_the_server(near: CommandLine, far: DovecotAccount) -> None:
    far.for_user("due").save_message(raw_message("Mine"))
    made(far, "due", name="due", interval=timedelta(minutes=5))
    key = made(far, "due", name="asked", active=False)
    assert near("connector", "run", key).code == 0
    asked = "SELECT name FROM connector_runs r JOIN connectors c ON c.id = connector_id"
    assert near.read_rows(asked) == [("asked",)]
    assert subjects(near) == ["Mine"]


def test_lists_by_user_and_by_how_they_do(near: CommandLine, far: DovecotAccount) -> None:
    assert near("user", "add", "bob", "--no-address", "--no-password").code == 0
    ids = [made(far, "x", name=f"c{nth}") for nth in range(2)]
    other = made(far, "y", name="c9", user="bob", active=False)
    assert [row["id"] for row in near("connector", "list", "--json").json] == [*ids, other]
    assert [row["name"] for row in near("connector", "list", "-u", "bob", "--json").json] == ["c9"]
    assert near("connector", "list", "--failing", "--json").json == []
    assert len(near("connector", "list", "--working", "--json").json) == 3
    said = near("connector", "list", "--user", "bob")
    assert (said.code, len(said.out.splitlines())) == (0, 2)
    assert re.search(rf"{other} +c9 +bob +IMAP +localhost:\d+ +no +never", said.out)
    whole = near("connector", "list", "--json").out
    assert "secret" not in whole
    assert PASSWORD not in whole


@pytest.mark.parametrize("command", ["check", "run", "log"])
def test_what_is_no_connector_is_one_sentence(
    near: CommandLine, far: DovecotAccount, command: str
) -> None:
    for nth in range(2):
        made(far, "x", name="twin", port=far.ports["imap"] + nth)
    for words, sentence in (
        ("con_AZpSKEwoAAE", "there is no connector con_AZpSKEwoAAE: `merganser connector list`"),
        ("nothing", "there is no connector nothing"),
        ("usr_AZpSKEwoAAE", "there is no connector usr_AZpSKEwoAAE"),
        ("twin", "2 connectors are called twin: say by its id which"),
    ):
        said = near("connector", command, words)
        assert (said.code, said.out) == (1, "")
        assert said.err.startswith(f"merganser: {sentence}")
        assert said.err.count("\n") == 1
    assert near.read_rows("SELECT count(*) FROM connector_runs") == [(0,)]


def test_one_without_a_run_has_no_log(near: CommandLine, far: DovecotAccount) -> None:
    made(far, "x", name="new")
    said = near("connector", "log", "new")
    assert (said.code, said.err) == (1, "merganser: new has not run yet\n")


def stages(out: str) -> list[tuple[str, str]]:
    found = re.findall(r"^(ok|failed) +(\S+)", out, re.MULTILINE)
    return [(how, which) for how, which in found]


def test_a_check_tells_stage_by_stage(
    near: CommandLine, far: DovecotAccount, authority: Authority
) -> None:
    far.for_user("check").save_message(raw_message("One"), "Work")
    made(far, "check")
    said = near("connector", "check", "far")
    assert said.code == 0, said.err
    plain = ["name", "connection", "greeting", "login", "folders"]
    assert stages(said.out) == [("ok", each) for each in plain]
    assert "\n  Work\n" in said.out
    assert "IMAP4REV1" in said.out.upper()
    key = made(far, "check", name="tls", security=ConnectorSecurity.TLS, port=far.ports["imaps"])
    secured = ["name", "connection", "TLS", "greeting", "login", "folders"]
    said = near("connector", "check", key)  # nobody has heard of this authority
    assert said.code == 1
    assert stages(said.out) == [("ok", "name"), ("ok", "connection"), ("failed", "TLS")]
    trusted = authority.folder / "ca.pem"
    trusted.write_bytes(authority.certificate.public_bytes(Encoding.PEM))
    env = {**os.environ, "SSL_CERT_FILE": str(trusted)}
    done = run_forked(["connector", "check", key], env)
    assert done.returncode == 0, done.stderr
    assert stages(done.stdout) == [("ok", each) for each in secured]


def test_a_check_ends_where_it_fails(near: CommandLine, far: DovecotAccount) -> None:
    made(far, "x", name="wrong", password="wrong")  # noqa: S106
    said = near("connector", "check", "wrong")
    assert said.code == 1
    assert stages(said.out)[-2:] == [("ok", "greeting"), ("failed", "login")]
    assert "Authentication failed" in said.out
    made(far, "x", name="closed", port=free_port())
    said = near("connector", "check", "closed", "--json")
    assert (said.code, said.json["ok"]) == (1, False)
    assert [(each["stage"], each["ok"]) for each in said.json["stages"]] == [
        ("RESOLVE", True), ("CONNECT", False)
    ]  # fmt: skip
    made(far, "x", name="pop", protocol=ConnectorProtocol.POP3, port=far.ports["pop3"])
    said = near("connector", "check", "pop")
    assert (said.code, stages(said.out)[-1]) == (0, ("ok", "login")), said.out
    near.set_settings(connectors_private="")
    said = near("connector", "check", "wrong")
    assert (said.code, stages(said.out)) == (1, [("failed", "connection")])
    assert "without encryption" in said.out
    assert near.read_rows("SELECT count(*) FROM connector_runs") == [(0,)]


def test_ctrl_c_ends_a_run_at_a_safe_point(near: CommandLine, far: DovecotAccount) -> None:
    spread(far, "slow")
    key = made(far, "slow", max_bytes_per_second=PIECE)
    other = made(far, "slow", name="later")
    process = ConnectorCommand("run", key, other)
    until(near, COMING)
    process.send_signal(signal.SIGINT)
    code, out, err = process.wait()
    assert code == 130, err
    assert "it ends at the next safe point" in err
    assert "far: ended before all had come" in err
    assert "later" not in out + err
    ((state, imported),) = near.read_rows("SELECT state, imported FROM connector_runs")
    assert state == "CANCELLED"
    assert 0 < imported < 6
    assert near.read_rows("SELECT count(*) FROM messages") == [(imported,)]
    assert out.startswith(f"far: {imported} messages brought")
    assert near.read_rows("SELECT count(*) FROM connectors WHERE lease IS NOT NULL") == [(0,)]
    near.change_store("UPDATE connectors SET max_bytes_per_second = 0")
    said = near("connector", "run", key)
    assert (said.code, subjects(near)) == (0, [f"Large {nth}" for nth in range(6)]), said.err
    assert f"{6 - imported} messages brought" in said.out


def test_ctrl_c_twice_leaves_at_once(near: CommandLine, far: DovecotAccount) -> None:
    far.for_user("twice").save_message(raw_message("Large") + b"x" * 70 * 20_000)
    key = made(far, "twice", max_bytes_per_second=10_000)
    process = ConnectorCommand("run", key)
    until(near, "SELECT 1 FROM connector_runs WHERE state = 'RUNNING' AND folder = 'INBOX'")
    process.send_signal(signal.SIGINT)
    until(near, "SELECT 1 FROM connector_runs WHERE cancelled")
    process.send_signal(signal.SIGINT)
    code, out, err = process.wait(10)
    assert (code, out) == (130, ""), err
    assert err.splitlines()[-1].startswith("merganser: left at once")


def test_the_run_of_another_process_is_followed(near: CommandLine, far: DovecotAccount) -> None:
    spread(far, "follow")
    key = made(far, "follow", max_bytes_per_second=PIECE)
    first = ConnectorCommand("run", key)
    until(near, COMING)
    said = near("connector", "run", key, "--json")
    code, out, err = first.wait()
    assert (code, said.code) == (0, 0), err
    assert "far: another process runs it, and it is followed" in said.err
    assert said.json[0]["imported"] == 6
    assert out.startswith("far: 6 messages brought")
    assert re.search(r"^far: Box \d; [345] of [3456] brought, \d+\.\d kB$", err, re.MULTILINE), err
    assert near.read_rows("SELECT count(*) FROM connector_runs") == [(1,)]
    assert subjects(near) == [f"Large {nth}" for nth in range(6)]


def test_the_run_of_a_process_that_died_is_taken_over(
    near: CommandLine, far: DovecotAccount
) -> None:
    spread(far, "died")
    key = made(far, "died", max_bytes_per_second=PIECE)
    first = ConnectorCommand("run", key)
    until(near, COMING)
    first.kill()
    assert first.wait()[0] == -signal.SIGKILL
    second = ConnectorCommand("run", key)
    time.sleep(1)
    assert second.poll() is None  # nobody knows yet that the first process is dead
    near.change_store("UPDATE connectors SET max_bytes_per_second = 0")
    code, out, err = second.wait()
    assert code == 0, err
    assert "brought" in out
    assert near.read_rows("SELECT count(*), max(state) FROM connector_runs") == [(1, "SUCCEEDED")]
    assert subjects(near) == [f"Large {nth}" for nth in range(6)]


@pytest.mark.usefixtures("near")
def test_somebody_who_watches_sees_a_bar(far: DovecotAccount) -> None:
    spread(far, "bar", 3)
    key = made(far, "bar", max_bytes_per_second=PIECE)
    master, slave = pty.openpty()
    process = subprocess.Popen(
        command("run", key), cwd=ROOT, stdout=subprocess.PIPE, stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "150"},
    )  # fmt: skip
    os.close(slave)
    shown = b""
    with closing(os.fdopen(master, "rb", buffering=0)), suppress(OSError):  # it ends with its pty
        while some := os.read(master, 1 << 16):
            shown += some
    out, _ = process.communicate()
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert len(set(re.findall(r"far: Box \d", text))) == 3
    assert re.search(r"far: Box \d .* 2 of [23] brought, \d+\.\d kB, \d+\.\d kB/s", text), text
    assert out.startswith(b"far: 3 messages brought")


@pytest.mark.parametrize("word", ["list", "check", "run", "log"])
def test_help_has_an_example(bare: CommandLine, word: str) -> None:
    assert f"Example: merganser connector {word}" in bare("connector", word, "--help").out
