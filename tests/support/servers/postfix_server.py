"""A Postfix of the tests' own on loopback: its folders, its ports, and what it has delivered."""

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.mail_servers.smtp_and_dns_servers import PEM
from tests.support.run_scope import CI

UMASK = 0o022  # whichever a command has left to this process
START = 60.0  # seconds, on a machine that does other things too
SBIN = "/usr/sbin:/usr/bin:/sbin:/bin"
MAIN = """\
compatibility_level = 3.6
maillog_file = {folder}/log
maillog_file_prefixes = {folder}
queue_directory = {folder}/queue
data_directory = {folder}/data
mail_owner = postfix
setgid_group = postdrop
multi_instance_enable = no
alternate_config_directories =
myhostname = postfix.example.net
mydestination =
mynetworks = 127.0.0.0/8
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
alias_maps =
alias_database =
local_recipient_maps =
smtp_host_lookup = native
lmtp_host_lookup = native
disable_dns_lookups = yes
smtpd_peername_lookup = no
smtputf8_enable = yes
message_size_limit = 60000000
mailbox_size_limit = 0
virtual_mailbox_limit = 0
virtual_mailbox_domains = example.net
virtual_mailbox_base = {folder}/mail
virtual_mailbox_maps = static:all/
virtual_minimum_uid = 1
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
relay_domains = example.org
transport_maps = texthash:{folder}/etc/transport
smtpd_tls_security_level = may
smtpd_tls_chain_files = {folder}/etc/pem
smtp_tls_security_level = may
smtp_tls_loglevel = 1
smtpd_recipient_restrictions = {restrictions}
smtpd_delay_reject = yes
smtpd_recipient_limit = 1000
minimal_backoff_time = 1s
maximal_backoff_time = 2s
queue_run_delay = 1s
"""
MASTER = """\
127.0.0.1:{port} inet n - n - - smtpd
pickup unix n - n 60 1 pickup
cleanup unix n - n - 0 cleanup
qmgr unix n - n 1 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
flush unix n - n 1000? 0 flush
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
lmtp unix - - n - - lmtp
relay unix - - n - - smtp
showq unix n - n - - showq
error unix - - n - - error
retry unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


def needed() -> None:
    """Skip the test where it cannot be run; but fail it in CI."""
    there = shutil.which("postfix", path=SBIN) is not None and os.geteuid() == 0
    if not there and not CI:
        pytest.skip("there is no Postfix here, or we are not root: apt-get install postfix")
    assert there, "postfix is to be installed in CI, which runs as root: .ci/run"


@dataclass
class Policy:
    """Whom Postfix asks about a recipient: it answers by the local part, else it has no opinion."""

    answers: dict[str, list[str]] = field(default_factory=dict)  # one each; then none
    asked: list[str] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer questions: names and values, line by line, up to an empty one."""
        said: dict[str, str] = {}
        async for line in reader:
            name, _, value = line.decode().rstrip("\n").partition("=")
            said[name] = value
            if name:
                continue
            to = said.get("recipient", "").partition("@")[0]
            self.asked.append(to)
            waiting = self.answers.get(to, [])
            writer.write(f"action={waiting.pop(0) if waiting else 'DUNNO'}\n\n".encode())
            said = {}
        writer.close()

    @asynccontextmanager
    async def listening(self) -> AsyncGenerator["Policy"]:
        """Answer meanwhile."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


@dataclass
class Postfix:
    """It takes mail for example.net, and sends on what is for example.org."""

    folder: Path
    port: int = 0
    refused: dict[str, str] = field(default_factory=dict)  # replies, by address
    routes: dict[str, str] = field(default_factory=dict)  # transport and next hop, by domain
    policy: int = 0  # port of whom it asks about recipients
    more: dict[str, str] = field(default_factory=dict)  # settings
    _process: "subprocess.Popen[bytes] | None" = None

    def lay(self) -> None:
        """Write its settings."""
        etc = self.folder / "etc"
        for each in (etc, self.folder / "queue", self.folder / "data", self.folder / "mail"):
            each.mkdir()
            each.chmod(0o755)
        owner = _owner()
        os.chown(self.folder / "data", *owner)
        os.chown(self.folder / "mail", *owner)
        restrictions = [f"check_recipient_access texthash:{etc}/refused"]
        if self.policy:
            restrictions.append(f"check_policy_service inet:127.0.0.1:{self.policy}")
        uid, gid = owner
        main = MAIN.format(
            folder=self.folder,
            uid=uid,
            gid=gid,
            restrictions=", ".join([*restrictions, "reject_unauth_destination"]),
        )
        settings = "".join(f"{name} = {value}\n" for name, value in self.more.items())
        (etc / "main.cf").write_text(main + settings)
        (etc / "master.cf").write_text(MASTER.format(port=self.port))
        (etc / "pem").write_bytes(PEM.read_bytes())
        (etc / "refused").write_text(_table(self.refused))
        (etc / "transport").write_text(_table(self.routes))
        for each in etc.iterdir():
            each.chmod(0o644)

    def start(self) -> None:
        """Run it until it greets."""
        etc = str(self.folder / "etc")
        env = {"PATH": SBIN, "MAIL_CONFIG": etc}
        done = subprocess.run(
            ["/usr/sbin/postfix", "-c", etc, "check"],
            env=env, capture_output=True, text=True, timeout=START, check=False, umask=UMASK,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr + self.log
        daemons = subprocess.run(
            ["/usr/sbin/postconf", "-c", etc, "-h", "daemon_directory"],
            env=env, capture_output=True, text=True, timeout=START, check=True,
        ).stdout.strip()  # fmt: skip
        self._process = subprocess.Popen(
            [f"{daemons}/master", "-c", etc, "-d"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            umask=UMASK,
            start_new_session=True,  # it ends its group when it ends
        )
        until = time.monotonic() + START
        while not _greets(self.port):
            assert self._process.poll() is None, self.log
            assert time.monotonic() < until, self.log
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, and all it has started."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process = None

    @property
    def log(self) -> str:
        """What it has logged."""
        file = self.folder / "log"
        return file.read_text() if file.exists() else ""

    def mails(self) -> list["Mail"]:
        """What it has delivered, one for each recipient, the oldest first."""
        files = sorted((self.folder / "mail" / "all" / "new").glob("*"), key=_age)
        return [Mail.of(file.read_bytes()) for file in files]


@dataclass(frozen=True)
class Mail:
    """What was delivered: to whom, and the message as it came, under Postfix's Received."""

    sender: str
    to: str
    received: str
    raw: bytes

    @classmethod
    def of(cls, stored: bytes) -> "Mail":
        """A file of a maildir, whose lines end as Unix has them, with three fields on top."""
        lines = stored.decode("utf-8", "surrogateescape").split("\n")
        top: dict[str, str] = {}
        while not lines[0].startswith("Received:"):
            name, _, value = lines.pop(0).partition(": ")
            top[name] = value
        received = [lines.pop(0)]
        while lines[0][:1] in (" ", "\t"):
            received.append(lines.pop(0))
        raw = "\r\n".join(lines).encode("utf-8", "surrogateescape")
        return cls(top["Return-Path"].strip("<>"), top["Delivered-To"], "\n".join(received), raw)


def _owner() -> tuple[int, int]:
    entry = pwd.getpwnam("postfix")
    return entry.pw_uid, entry.pw_gid


def _table(values: dict[str, str]) -> str:
    return "".join(f"{name} {value}\n" for name, value in values.items())


def _age(file: Path) -> int:
    return file.stat().st_mtime_ns


def _greets(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            return connection.recv(3) == b"220"
    except OSError:
        return False


@contextmanager
def postfix(port: int, **more: Any) -> Generator[Postfix]:
    """Run it in a folder that its own account may enter."""
    needed()
    folder = Path(tempfile.mkdtemp(prefix="postfix-"))
    folder.chmod(0o755)
    made = Postfix(folder, port, **more)
    try:
        made.lay()
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)
