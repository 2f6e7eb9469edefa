"""A Dovecot server on loopback with IMAP and POP3, with or without TLS, also used by tests."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from bench.servers.ports import HOST, free_port

PASSWORD = "far-away"  # noqa: S105 - only valid on loopback
NOBODY = 65534  # user and group that Dovecot reads mail as
USUAL = 0o022  # independent of the umask of this process
PATIENCE = 20.0  # seconds

CONFIG = """
base_dir = {run}
state_dir = {run}/state
log_path = {folder}/log
protocols = imap pop3
listen = 127.0.0.1
ssl = {ssl}
{certificate}
disable_plaintext_auth = no
auth_mechanisms = plain login cram-md5
auth_failure_delay = 0
mail_location = {format}:{folder}/mail/%u
first_valid_uid = 1
mail_max_userip_connections = 50
mailbox_list_index = yes
pop3_uidl_format = %08Xu%08Xv
passdb {{
  driver = static
  args = password={password}
}}
userdb {{
  driver = static
  args = uid=65534 gid=65534 home={folder}/home/%u
}}
namespace inbox {{
  inbox = yes
  separator = {separator}
  mailbox Sent {{
    special_use = \\Sent
  }}
}}
service imap-login {{
  inet_listener imap {{
    port = {imap}
  }}
  inet_listener imaps {{
    port = {imaps}
    ssl = yes
  }}
}}
service pop3-login {{
  inet_listener pop3 {{
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = {pop3s}
    ssl = yes
  }}
}}
service anvil {{
  client_limit = 1000
  unix_listener anvil-auth-penalty {{
    mode = 0
  }}
}}
"""


@dataclass
class Dovecot:
    """The ports and folder of the server, and one user. All users sign in with PASSWORD."""

    folder: Path
    ports: dict[str, int]
    user: str = "ada"
    made: set[tuple[str, str]] = field(default_factory=set)  # user and path

    def account(self, user: str) -> "Dovecot":
        """Return the same server with another user."""
        return Dovecot(self.folder, self.ports, user, self.made)

    def doveadm(self, verb: str, *words: str, given: bytes = b"") -> bytes:
        """Run a doveadm command for the user, and return its output."""
        command = ["doveadm", "-c", str(self.folder / "conf"), *verb.split(), "-u",
                   self.user, *words]  # fmt: skip
        done = subprocess.run(  # noqa: S603 - a fixed command
            command, input=given, check=True, capture_output=True, umask=USUAL
        )
        return done.stdout

    def save(self, raw: bytes, mailbox: str = "INBOX") -> None:
        """Save a message in a mailbox, which is created if missing."""
        if mailbox != "INBOX" and (self.user, mailbox) not in self.made:
            self.doveadm("mailbox create", mailbox)
            self.made.add((self.user, mailbox))
        self.doveadm("save", "-m", mailbox, given=raw)

    def save_all(self, raws: Sequence[bytes], mailbox: str = "INBOX") -> None:
        """Save messages in a mailbox, which is created if missing. Needs at least one."""
        self.save(raws[0], mailbox)
        self.fill(raws[1:], mailbox)

    def fill(self, raws: Iterable[bytes], mailbox: str = "INBOX", flags: str = "") -> list[str]:
        """Write messages into the Maildir of an existing mailbox, and return their file names.

        `flags` are Maildir letters such as `FS`.
        """
        place, names = self.maildir(mailbox) / ("cur" if flags else "new"), list[str]()
        for nth, raw in enumerate(raws):
            names.append(f"{time.time_ns()}.M{nth}.far")
            path = place / (f"{names[-1]}:2,{flags}" if flags else names[-1])
            path.write_bytes(raw)
            shutil.chown(path, NOBODY, NOBODY)
        return names

    def save_at(self, raw: bytes, at: datetime, flags: str = "") -> None:
        """Save a message in the existing INBOX with this arrival time and Maildir flags."""
        name = f"{time.time_ns()}.M0.far:2,{flags}"
        path, there = (self.maildir() / folder / name for folder in ("tmp", "cur"))
        path.write_bytes(raw)
        os.utime(path, (at.timestamp(), at.timestamp()))
        shutil.chown(path, NOBODY, NOBODY)
        path.rename(there)

    def maildir(self, mailbox: str = "INBOX") -> Path:
        """Return the Maildir folder of a mailbox."""
        place = self.folder / "mail" / self.user
        return place if mailbox == "INBOX" else place / f".{mailbox.replace('/', '.')}"

    def count(self, mailbox: str = "INBOX") -> int:
        """Return the number of messages in a mailbox."""
        told = self.doveadm("mailbox status", "messages", mailbox)
        return int(told.rpartition(b"=")[2])


@contextmanager
def dovecot(
    folder: Path,
    *,
    certificate: tuple[Path, Path] | None = None,
    separator: str = "/",
    kind: str = "maildir",
) -> Iterator[Dovecot]:
    """Run Dovecot in a folder, with TLS if a certificate and key are given.

    Raises RuntimeError if it does not start. All users must be able to enter the parent folder.
    """
    ports = {name: free_port() for name in ("imap", "imaps", "pop3", "pop3s")}
    run = folder / "run"
    for place in (run, folder / "mail", folder / "home"):
        place.mkdir(parents=True)
        shutil.chown(place, NOBODY, NOBODY)
    for place in (folder, run):
        place.chmod(0o755)
    shutil.chown(run, "root", "root")
    keys = ""
    if certificate:
        keys = f"ssl_cert = <{certificate[0]}\nssl_key = <{certificate[1]}\n"
    (folder / "conf").write_text(
        CONFIG.format(folder=folder, run=run, password=PASSWORD, separator=separator, format=kind,
                      ssl="yes" if certificate else "no", certificate=keys, **ports)
    )  # fmt: skip
    command = ["dovecot", "-F", "-c", str(folder / "conf")]
    process = subprocess.Popen(command, umask=USUAL)  # noqa: S603 - a fixed command
    try:
        until = time.monotonic() + PATIENCE
        while not _listening(ports["imap"]):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.02)
        yield Dovecot(folder, ports)
    finally:
        process.terminate()
        process.wait(10)


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
