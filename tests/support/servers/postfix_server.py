"""A Postfix server on loopback: its folders, its ports, and the messages it has delivered."""

import asyncio
import os
import pwd
import re
import shutil
import signal
import smtplib
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

from tests.support.mail_servers.smtp_and_dns_servers import SERVER_PEM
from tests.support.run_scope import CI
from tests.support.time_limits import HANG_SECONDS

UMASK = 0o022  # independent of the umask of the test process
START_TIMEOUT = 60.0  # seconds, on a busy machine
QUEUE_TIMEOUT = 10.0  # seconds in which Postfix finishes the messages of a test that has passed
ACCEPTED_ID = re.compile(rb"postfix/cleanup\[\d+]: (\w+): message-id=")
REMOVED_ID = re.compile(rb"postfix/qmgr\[\d+]: (\w+): removed")
PROGRAM_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"
MAIN_CONFIG = """\
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
MASTER_CONFIG = """\
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


def require_postfix() -> None:
    """Skip the test if Postfix is missing or the process is not root, but fail in CI."""
    is_available = shutil.which("postfix", path=PROGRAM_PATH) is not None and os.geteuid() == 0
    if not is_available and not CI:
        pytest.skip("there is no Postfix here, or we are not root: apt-get install postfix")
    assert is_available, "postfix is to be installed in CI, which runs as root: .ci/run"


@dataclass
class PostfixPolicyServer:
    """A policy server that Postfix asks about each recipient. The default action is DUNNO."""

    # actions by local part; each is sent once
    actions_by_name: dict[str, list[str]] = field(default_factory=dict)
    queried_names: list[str] = field(default_factory=list)
    port: int = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer requests: lines with names and values, up to an empty line."""
        attributes: dict[str, str] = {}
        async for line in reader:
            name, _, value = line.decode().rstrip("\n").partition("=")
            attributes[name] = value
            if name:
                continue
            local_part = attributes.get("recipient", "").partition("@")[0]
            self.queried_names.append(local_part)
            actions = self.actions_by_name.get(local_part, [])
            writer.write(f"action={actions.pop(0) if actions else 'DUNNO'}\n\n".encode())
            attributes = {}
        writer.close()

    @asynccontextmanager
    async def run_server(self) -> AsyncGenerator["PostfixPolicyServer"]:
        """Run the policy server."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()


@dataclass
class PostfixServer:
    """A server that stores mail for example.net and relays mail for example.org."""

    folder: Path
    port: int = 0
    refusals: dict[str, str] = field(default_factory=dict)  # replies by address
    routes: dict[str, str] = field(default_factory=dict)  # transport and next hop by domain
    policy_port: int = 0  # the port of a policy server
    extra_settings: dict[str, str] = field(default_factory=dict)  # settings
    _process: "subprocess.Popen[bytes] | None" = None
    _forgotten_log_size: int = 0  # bytes

    def write_configuration(self) -> None:
        """Write the configuration and create the folders."""
        etc = self.folder / "etc"
        for path in (etc, self.folder / "queue", self.folder / "data", self.folder / "mail"):
            path.mkdir()
            path.chmod(0o755)
        ids = _postfix_ids()
        os.chown(self.folder / "data", *ids)
        os.chown(self.folder / "mail", *ids)
        restrictions = [f"check_recipient_access texthash:{etc}/refused"]
        if self.policy_port:
            restrictions.append(f"check_policy_service inet:127.0.0.1:{self.policy_port}")
        uid, gid = ids
        main_config = MAIN_CONFIG.format(
            folder=self.folder,
            uid=uid,
            gid=gid,
            restrictions=", ".join([*restrictions, "reject_unauth_destination"]),
        )
        settings = "".join(f"{name} = {value}\n" for name, value in self.extra_settings.items())
        (etc / "main.cf").write_text(main_config + settings)
        (etc / "master.cf").write_text(MASTER_CONFIG.format(port=self.port))
        (etc / "pem").write_bytes(SERVER_PEM.read_bytes())
        (etc / "refused").write_text(_lookup_table(self.refusals))
        (etc / "transport").write_text(_lookup_table(self.routes))
        for path in etc.iterdir():
            path.chmod(0o644)

    def start(self) -> None:
        """Start Postfix and wait until it accepts a recipient.

        After the greeting its other processes can still be starting, so that it defers recipients.
        """
        etc = str(self.folder / "etc")
        env = {"PATH": PROGRAM_PATH, "MAIL_CONFIG": etc}
        check = subprocess.run(
            ["/usr/sbin/postfix", "-c", etc, "check"],
            env=env, capture_output=True, text=True, timeout=START_TIMEOUT, check=False,
            umask=UMASK,
        )  # fmt: skip
        assert check.returncode == 0, check.stderr + self.log
        daemons = subprocess.run(
            ["/usr/sbin/postconf", "-c", etc, "-h", "daemon_directory"],
            env=env, capture_output=True, text=True, timeout=START_TIMEOUT, check=True,
        ).stdout.strip()  # fmt: skip
        self._process = subprocess.Popen(
            [f"{daemons}/master", "-c", etc, "-d"],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            umask=UMASK,
            start_new_session=True,  # it kills its process group when it stops
        )
        deadline = time.monotonic() + START_TIMEOUT
        is_ready = _sends_greeting if self.policy_port else _accepts_recipient
        while not is_ready(self.port):
            assert self._process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop Postfix and its processes."""
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
        """The log so far, without its forgotten part."""
        return self._whole_log()[self._forgotten_log_size :].decode()

    def forget_earlier_mail(self) -> None:
        """Wait until no message is queued, delete the delivered ones, and forget the log.

        Deletes messages that remain queued, as after a failed test.
        """
        deadline = time.monotonic() + QUEUE_TIMEOUT
        while self._has_queued_messages():
            if time.monotonic() > deadline:
                self._delete_queue()
                break
            time.sleep(0.02)
        for file in self._delivered_files():
            file.unlink()
        self._forgotten_log_size = len(self._whole_log())

    def _has_queued_messages(self) -> bool:
        """True unless the log has the end of each message. No line on a message follows its end."""
        log = self._whole_log()
        return not set(ACCEPTED_ID.findall(log)) <= set(REMOVED_ID.findall(log))

    def _delete_queue(self) -> None:
        etc = str(self.folder / "etc")
        subprocess.run(
            ["/usr/sbin/postsuper", "-c", etc, "-d", "ALL"],
            env={"PATH": PROGRAM_PATH, "MAIL_CONFIG": etc},
            capture_output=True, timeout=START_TIMEOUT, check=True,
        )  # fmt: skip

    def load_delivered_messages(self) -> list["PostfixDelivery"]:
        """Read the delivered messages, one for each recipient, the oldest first."""
        files = sorted(self._delivered_files(), key=_modified_at)
        return [PostfixDelivery.from_maildir_file(file.read_bytes()) for file in files]

    def _delivered_files(self) -> list[Path]:
        return list((self.folder / "mail" / "all" / "new").glob("*"))

    def _whole_log(self) -> bytes:
        file = self.folder / "log"
        return file.read_bytes() if file.exists() else b""


@dataclass(frozen=True)
class PostfixDelivery:
    """A delivered message with its envelope and the Received field of Postfix."""

    sender: str
    to: str
    received: str
    raw: bytes

    @classmethod
    def from_maildir_file(cls, stored: bytes) -> "PostfixDelivery":
        """Parse a maildir file: LF line endings, and three fields of the delivery on top."""
        lines = stored.decode("utf-8", "surrogateescape").split("\n")
        delivery_fields: dict[str, str] = {}
        while not lines[0].startswith("Received:"):
            name, _, value = lines.pop(0).partition(": ")
            delivery_fields[name] = value
        received = [lines.pop(0)]
        while lines[0][:1] in (" ", "\t"):
            received.append(lines.pop(0))
        raw = "\r\n".join(lines).encode("utf-8", "surrogateescape")
        return cls(
            delivery_fields["Return-Path"].strip("<>"),
            delivery_fields["Delivered-To"],
            "\n".join(received),
            raw,
        )


def _postfix_ids() -> tuple[int, int]:
    entry = pwd.getpwnam("postfix")
    return entry.pw_uid, entry.pw_gid


def _lookup_table(values: dict[str, str]) -> str:
    return "".join(f"{name} {value}\n" for name, value in values.items())


def _modified_at(file: Path) -> int:
    return file.stat().st_mtime_ns


def _accepts_recipient(port: int) -> bool:
    """True if Postfix on this port accepts a recipient. A policy server would see the probe."""
    try:
        with smtplib.SMTP("127.0.0.1", port, "probe.example.net", timeout=HANG_SECONDS) as smtp:
            smtp.ehlo()
            return (
                b"postfix" in (smtp.ehlo_resp or b"")
                and smtp.mail("")[0] == 250
                and smtp.rcpt("probe@example.net")[0] == 250
            )
    except (OSError, smtplib.SMTPException):
        return False


def _sends_greeting(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=HANG_SECONDS) as connection:
            return connection.recv(3) == b"220"
    except OSError:
        return False


@contextmanager
def run_postfix_server(port: int, **options: Any) -> Generator[PostfixServer]:
    """Run Postfix in a folder that its own user can enter."""
    require_postfix()
    folder = Path(tempfile.mkdtemp(prefix="postfix-"))
    folder.chmod(0o755)
    server = PostfixServer(folder, port, **options)
    try:
        server.write_configuration()
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
