"""A Dovecot server with accounts that move to Merganser, and a shell of its administrator."""

import asyncio
import imaplib
import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.servers.dovecot_server import MAIL_USER_ID
from tests.support.clients.page_commands import run_shell, substitute
from tests.support.mail_servers.imap_messages import (
    MessageCopy,
    listed_names,
    read_messages,
    sort_copies,
)
from tests.support.mail_servers.smtp_client import CertificateAuthority
from tests.support.servers.dovecot_server import run_dovecot
from tests.support.servers.program_process import program_path
from tests.support.time_limits import HANG_SECONDS

ADA, BOB, CLEO = (f"{name}@example.org" for name in ("ada", "bob", "cleo"))
SCHEMES = {ADA: "SHA512-CRYPT", BOB: "BLF-CRYPT", CLEO: "ARGON2ID"}
DOVECOT_ACCOUNTS = """
passdb {{
  driver = passwd-file
  args = {etc}/users
}}
userdb {{
  driver = passwd-file
  args = {etc}/users
  default_fields = uid={owner} gid={owner} home={home}/%u
}}
namespace inbox {{
  mailbox "Sent Items" {{
    special_use = \\Sent
  }}
  mailbox Spam {{
    special_use = \\Junk
  }}
  mailbox Entw&APw-rfe {{
    special_use = \\Drafts
  }}
}}
!include_try {etc}/conf.d/*.conf
"""
# the mailboxes here of those with a special use or a usual name there
LOCAL_PATHS = {
    "Sent Items": "Sent", "Spam": "Junk", "Entw&APw-rfe": "Drafts", "Papierkorb": "Trash",
}  # fmt: skip


@dataclass
class OldServer:
    """A Dovecot server with three accounts."""

    folder: Path  # the working folder of its administrator
    etc: Path
    port: int  # of IMAP with TLS
    program_folder: Path  # has `doveadm` for this server
    authority: CertificateAuthority
    new_folder: Path
    passwords: Mapping[str, str]

    async def run_block(self, block: str) -> str:
        """Run the commands of a block, which must succeed, and return their output."""
        replacements = {
            "/etc/dovecot": str(self.etc),
            "/var/tmp/back": str(self.folder / "back"),  # noqa: S108 - as the page prints it
            "mail.example.org:move/": f"{self.new_folder}/",
            "vmail:vmail": f"{MAIL_USER_ID}:{MAIL_USER_ID}",
            "-o vmail ": f"-o {MAIL_USER_ID} ",
            "scp ": "cp ",
        }
        env = {"PATH": f"{self.program_folder}:{os.environ['PATH']}", "HOME": str(self.folder)}
        return await run_shell(substitute(block, replacements), self.folder, env)

    @contextmanager
    def sign_in(self, account: str, password: str | None = None) -> Iterator[imaplib.IMAP4_SSL]:
        """Sign in to an account by IMAP."""
        context = self.authority.client_context()
        with imaplib.IMAP4_SSL("localhost", self.port, ssl_context=context) as client:
            client.login(account, password or self.passwords[account])
            yield client

    async def wait_for_master_user(self) -> None:
        """Wait until the reloaded server accepts the master user."""
        password = (self.folder / "move-password").read_text()
        await self.wait_for_sign_in(f"{ADA}*move", password)

    async def wait_for_sign_in(self, account: str, password: str | None = None) -> None:
        """Wait until the server accepts the account: its authentication starts after its ports."""
        async with asyncio.timeout(HANG_SECONDS):
            while True:
                try:
                    with self.sign_in(account, password):
                        return
                except imaplib.IMAP4.error:
                    await asyncio.sleep(0.05)

    def read_account(self, account: str) -> dict[str, list[MessageCopy]]:
        """Return the messages of each mailbox that has some, by the path in Merganser."""
        copies: dict[str, list[MessageCopy]] = {}
        with self.sign_in(account) as client:
            for name in listed_names(client.list()[1]):
                messages = read_messages(client, name)
                if messages:
                    copies.setdefault(LOCAL_PATHS.get(name, name), []).extend(messages)
        return {path: sort_copies(messages) for path, messages in copies.items()}

    def count_inbox(self, account: str) -> int:
        """Return the number of messages in INBOX, with duplicates."""
        with self.sign_in(account) as client:
            return int(client.select("INBOX", readonly=True)[1][0])  # type: ignore[arg-type]

    def read_subscriptions(self, account: str) -> set[str]:
        """Return the subscribed paths, as they are in Merganser."""
        with self.sign_in(account) as client:
            return {LOCAL_PATHS.get(name, name) for name in listed_names(client.lsub()[1])}


def hash_password(doveadm: Path, password: str, scheme: str) -> str:
    """Return the hash of a password as Dovecot stores it."""
    command = [str(doveadm), "pw", "-s", scheme, "-p", password]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@contextmanager
def run_old_server(folder: Path, new_folder: Path) -> Iterator[OldServer]:
    """Run Dovecot with the accounts, whose passwords have different hashes."""
    etc, programs = folder / "etc", folder / "programs"
    for created_folder in (etc / "conf.d", programs, folder / "ca", folder / "admin"):
        created_folder.mkdir(parents=True)
    authority = CertificateAuthority(folder / "ca")
    certificate = authority.issue_certificate("localhost")
    accounts = DOVECOT_ACCOUNTS.format(etc=etc, home=folder / "dovecot/home", owner=MAIL_USER_ID)
    with run_dovecot(
        folder / "dovecot",
        certificate_and_key=(certificate, certificate),
        accounts_config=accounts,
    ) as server:
        program = programs / "doveadm"
        program.write_text(
            f'#!/bin/sh\numask 022\nexec {program_path("doveadm")} -c {server.folder}/conf "$@"\n'
        )
        program.chmod(0o755)
        passwords = {account: f"password of {account}" for account in SCHEMES}
        (etc / "users").write_text(
            "".join(
                f"{account}:{hash_password(program, password, SCHEMES[account])}::::::\n"
                for account, password in passwords.items()
            )
        )
        yield OldServer(
            folder / "admin", etc, server.ports["imaps"], programs, authority, new_folder, passwords
        )
