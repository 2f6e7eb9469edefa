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
MAIL_USER_ID = 65534  # user and group that Dovecot reads mail as
UMASK = 0o022  # independent of the umask of this process
START_TIMEOUT = 20.0  # seconds

CONFIG_TEMPLATE = """
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
{accounts}
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
class DovecotAccount:
    """The ports and folder of the server, and one user. All users sign in with PASSWORD."""

    folder: Path
    ports: dict[str, int]
    user: str = "ada"
    created_mailboxes: set[tuple[str, str]] = field(default_factory=set)  # user and path

    def for_user(self, user: str) -> "DovecotAccount":
        """Return the same server with another user."""
        return DovecotAccount(self.folder, self.ports, user, self.created_mailboxes)

    def run_doveadm(self, subcommand: str, *arguments: str, stdin: bytes = b"") -> bytes:
        """Run a doveadm command for the user, and return its output."""
        command = ["doveadm", "-c", str(self.folder / "conf"), *subcommand.split(), "-u",
                   self.user, *arguments]  # fmt: skip
        completed = subprocess.run(  # noqa: S603 - a fixed command
            command, input=stdin, check=True, capture_output=True, umask=UMASK
        )
        return completed.stdout

    def save_message(self, raw_message: bytes, mailbox: str = "INBOX") -> None:
        """Save a message in a mailbox, which is created if missing."""
        if mailbox != "INBOX" and (self.user, mailbox) not in self.created_mailboxes:
            self.run_doveadm("mailbox create", mailbox)
            self.created_mailboxes.add((self.user, mailbox))
        self.run_doveadm("save", "-m", mailbox, stdin=raw_message)

    def save_messages(self, raw_messages: Sequence[bytes], mailbox: str = "INBOX") -> None:
        """Save messages in a mailbox, which is created if missing. Needs at least one."""
        self.save_message(raw_messages[0], mailbox)
        self.write_to_maildir(raw_messages[1:], mailbox)

    def write_to_maildir(
        self, raw_messages: Iterable[bytes], mailbox: str = "INBOX", flags: str = ""
    ) -> list[str]:
        """Write messages into the Maildir of an existing mailbox, and return their file names.

        `flags` are Maildir letters such as `FS`.
        """
        target_folder, names = self.maildir_path(mailbox) / ("cur" if flags else "new"), list[str]()
        for nth, raw in enumerate(raw_messages):
            names.append(f"{time.time_ns()}.M{nth}.far")
            path = target_folder / (f"{names[-1]}:2,{flags}" if flags else names[-1])
            path.write_bytes(raw)
            shutil.chown(path, MAIL_USER_ID, MAIL_USER_ID)
        return names

    def save_with_date(self, raw_message: bytes, received_at: datetime, flags: str = "") -> None:
        """Save a message in the existing INBOX with this arrival time and Maildir flags."""
        name = f"{time.time_ns()}.M0.far:2,{flags}"
        path, final_path = (self.maildir_path() / folder / name for folder in ("tmp", "cur"))
        path.write_bytes(raw_message)
        os.utime(path, (received_at.timestamp(), received_at.timestamp()))
        shutil.chown(path, MAIL_USER_ID, MAIL_USER_ID)
        path.rename(final_path)

    def maildir_path(self, mailbox: str = "INBOX") -> Path:
        """Return the Maildir folder of a mailbox."""
        user_folder = self.folder / "mail" / self.user
        return user_folder if mailbox == "INBOX" else user_folder / f".{mailbox.replace('/', '.')}"

    def count_messages(self, mailbox: str = "INBOX") -> int:
        """Return the number of messages in a mailbox."""
        output = self.run_doveadm("mailbox status", "messages", mailbox)
        return int(output.rpartition(b"=")[2])


@contextmanager
def run_dovecot(
    folder: Path,
    *,
    certificate_and_key: tuple[Path, Path] | None = None,
    separator: str = "/",
    mail_format: str = "maildir",
    accounts_config: str | None = None,
) -> Iterator[DovecotAccount]:
    """Run Dovecot in a folder, with TLS if a certificate and key are given.

    `accounts_config` configures the accounts. By default each name is an account with PASSWORD.

    Raises RuntimeError if it does not start. All users must be able to enter the parent folder.
    """
    ports = {name: free_port() for name in ("imap", "imaps", "pop3", "pop3s")}
    run = folder / "run"
    for created_folder in (run, folder / "mail", folder / "home"):
        created_folder.mkdir(parents=True)
        shutil.chown(created_folder, MAIL_USER_ID, MAIL_USER_ID)
    for created_folder in (folder, run):
        created_folder.chmod(0o755)
    shutil.chown(run, "root", "root")
    keys = ""
    if certificate_and_key:
        keys = f"ssl_cert = <{certificate_and_key[0]}\nssl_key = <{certificate_and_key[1]}\n"
    (folder / "conf").write_text(
        CONFIG_TEMPLATE.format(
            folder=folder,
            run=run,
            accounts=_any_name_accounts(folder) if accounts_config is None else accounts_config,
            separator=separator,
            format=mail_format,
            ssl="yes" if certificate_and_key else "no",
            certificate=keys,
            **ports,
        )
    )
    command = ["dovecot", "-F", "-c", str(folder / "conf")]
    process = subprocess.Popen(command, umask=UMASK)  # noqa: S603 - a fixed command
    try:
        until = time.monotonic() + START_TIMEOUT
        while not _is_listening(ports["imap"]):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((folder / "log").read_text())
            time.sleep(0.02)
        yield DovecotAccount(folder, ports)
    finally:
        process.terminate()
        process.wait(10)


def _any_name_accounts(folder: Path) -> str:
    """Return the configuration that accepts every name with PASSWORD."""
    return f"""
passdb {{
  driver = static
  args = password={PASSWORD}
}}
userdb {{
  driver = static
  args = uid={MAIL_USER_ID} gid={MAIL_USER_ID} home={folder}/home/%u
}}
"""


def _is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0
