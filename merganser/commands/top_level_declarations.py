"""Declarations of the commands without a group, such as `merganser serve`."""
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

from pathlib import Path
from typing import Annotated

import typer

from merganser.commands.lazy_commands import implemented_in
from merganser.commands.shared_options import JsonOption

PassphraseStdin = Annotated[
    bool,
    typer.Option(
        "--passphrase-stdin",
        help="Read the passphrase that encrypts passwords of connectors from stdin. "
        "12 to 1024 characters.",
    ),
]

declarations = typer.Typer()


@declarations.command("serve")
@implemented_in("merganser.commands.server.serve_command")
def serve(
    demo: Annotated[
        bool,
        typer.Option(
            "--demo",
            help="Create the demo accounts and print how to use them. Nothing is sent to other "
            "machines: outgoing mail is written into a folder.",
        ),
    ] = False,
    demo_count: Annotated[int, typer.Option(min=1, hidden=True)] = 520,
    workers: Annotated[
        int,
        typer.Option(
            min=1,
            max=256,
            help="Number of listening processes. With 2 or more, one more does background work.",
        ),
    ] = 1,
) -> None:
    """Run the server: HTTP, LMTP, SMTP and the background workers, in one process or several.

    The database is created or migrated first. Ctrl-C or SIGTERM stops the server. No accepted
    message is lost. SIGHUP reads the settings file MERGANSER_CONFIG and the certificates again.

    Example: MERGANSER_HTTP_LISTEN=127.0.0.1:9000 merganser serve
    """


@declarations.command("init")
@implemented_in("merganser.commands.server.init_command")
def init(
    system: Annotated[
        bool,
        typer.Option(
            "--system",
            help="Instead create the missing files in /etc/merganser for the systemd service, "
            "with all settings as comments, and print what remains to be done.",
        ),
    ] = False,
) -> None:
    """Create or migrate the database, without starting a server.

    Example: MERGANSER_DATABASE_URL=postgresql://mail@localhost/mail merganser init

    Example: merganser init --system
    """


@declarations.command("demo")
@implemented_in("merganser.commands.server.demo_command")
def create_missing_demo_accounts(
    count: Annotated[
        int, typer.Option(min=1, help="Number of messages, if they are not delivered yet.")
    ] = 520,
) -> None:
    """Create demo accounts, and print their credentials.

    One account has messages of all kinds, one is an administrator, and one has no mail. Accounts
    that exist stay as they are.

    Example: merganser demo
    """


@declarations.command("export")
@implemented_in("merganser.commands.transfer.export_command")
def export_account(
    path: Annotated[Path, typer.Argument(help="File to write: .zip, .tar, .jsonl or .mbox.")],
    user: Annotated[str, typer.Option("--user", "-u", help="Account: username or address.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="EML_ZIP, MAILDIR_TAR, JSON or MBOX. Default: by the extension of the file.",
        ),
    ] = None,
    mailbox: Annotated[
        str | None, typer.Option(help="Export only the messages of this mailbox.")
    ] = None,
    settings: Annotated[bool, typer.Option(help="Include settings and key-value entries.")] = True,
    passphrase_stdin: PassphraseStdin = False,
) -> None:
    """Export an account to a file: mailboxes, messages, flags, dates and settings.

    `merganser import` restores the account on this server or another one. An mbox file has only
    the messages. An existing file is not overwritten, and an incomplete file is removed. The file
    has the passwords of connectors only if a passphrase encrypts them. The exit code is 1 if a
    message is damaged: it is named, and left out.

    Example: merganser export ada.zip --user ada

    Example: merganser export sent.mbox --user ada --mailbox Sent

    Example: merganser export ada.zip --user ada --passphrase-stdin < passphrase.txt
    """


@declarations.command("import")
@implemented_in("merganser.commands.transfer.import_command")
def import_account(
    path: Annotated[
        Path,
        typer.Argument(
            help="An mbox file, a Maildir, a folder of .eml files, or an archive: .zip, .tar, "
            ".jsonl."
        ),
    ],
    user: Annotated[str, typer.Option("--user", "-u", help="Account: username or address.")],
    mailbox: Annotated[
        str | None,
        typer.Option(help="Mailbox for all messages. Default: the mailboxes of the source."),
    ] = None,
    settings: Annotated[
        bool, typer.Option(help="Import settings too, if the archive has them.")
    ] = True,
    passphrase_stdin: PassphraseStdin = False,
) -> None:
    """Import mail of another program, or an exported account.

    If the command is interrupted, run it again: it continues. A message that the mailbox already
    has is not stored twice. Flags and arrival times are kept.

    Example: merganser import ~/Maildir --user ada

    Example: merganser import old.mbox --user ada --mailbox Archive/2019

    Example: merganser import ada.zip --user ada

    Example: merganser import ada.zip --user ada --passphrase-stdin < passphrase.txt
    """


@declarations.command("send-test")
@implemented_in("merganser.commands.server.send_test_command")
def send_test_message_over_lmtp(
    to: Annotated[str, typer.Option(help="Recipient. Default: the demo account.")] = "",
    sender: Annotated[str, typer.Option("--from", help="Sender.")] = "tester@merganser.example",
    subject: Annotated[str, typer.Option(help="Subject.")] = "A test from merganser",
    attach: Annotated[
        list[Path] | None, typer.Option(help="File to attach; can be repeated.")
    ] = None,
) -> None:
    """Send a test message to the running server by LMTP, and print the reply.

    Example: merganser send-test --to ada@example.org --attach photo.jpg
    """


@declarations.command("schema")
@implemented_in("merganser.commands.server.schema_command")
def print_schema() -> None:
    """Print the GraphQL schema.

    Example: merganser schema > schema.graphql
    """


@declarations.command("settings")
@implemented_in("merganser.commands.server.settings_command")
def print_settings_page() -> None:
    """Print all settings as a Markdown page: variable, value, default and meaning, by topic.

    Example: merganser settings
    """


@declarations.command("doctor")
@implemented_in("merganser.commands.server.doctor_command")
def run_doctor(
    as_json: JsonOption = False,
) -> None:
    """Check database, object store, disk, clock, files, keys, ports, DNS, certificates, backups.

    For each problem it prints what to do. The exit code is 1 if something must be done.

    Example: merganser doctor
    """


@declarations.command("check")
@implemented_in("merganser.commands.server.check_command")
def check_store(
    repair: Annotated[
        bool, typer.Option("--repair", help="Repair the differences. Stop all servers first.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Don't read stored bytes.")] = False,
    restored: Annotated[
        bool,
        typer.Option(
            "--restored",
            help="Database and objects were restored to the same moment: all clients must read "
            "their state again. Stop all servers first.",
        ),
    ] = False,
) -> None:
    """Verify the database and the stored objects, and print all differences as JSON.

    Counters, quotas, references and the search index are computed again and compared. The exit
    code is 1 if a difference remains.

    Example: merganser check --quick
    """


@declarations.command("backup")
@implemented_in("merganser.commands.backup.backup_command")
def backup_store(
    target: Annotated[
        str,
        typer.Argument(
            help="Folder, or bucket as in s3://bucket/prefix?endpoint=https://s3.example.org."
        ),
    ],
    keys: Annotated[
        Path | None,
        typer.Option(help="Folder for a copy of the key files, apart from TARGET."),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Read all objects of the backup, and compare hashes.")
    ] = False,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Number of backups that stay in TARGET. Default: all."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Back up the database and the objects to a folder or bucket. Servers can run.

    Only objects that TARGET does not have are copied. The backup is verified. The exit code is 1
    if the store itself has lost objects: they are named, and all others are in the backup. It is
    also 1 if an earlier backup is damaged.

    Example: merganser backup /mnt/backup --keys /mnt/keys --keep 14

    Example: merganser backup 's3://backups/mail?region=eu-west-1' --verify
    """


@declarations.command("restore")
@implemented_in("merganser.commands.backup.restore_command")
def restore_backup(
    source: Annotated[str, typer.Argument(help="Folder or bucket that has the backups.")],
    backup_id: Annotated[
        str | None, typer.Option("--id", help="ID of the backup. Default: the newest.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="Folder with the copies of the key files.")
    ] = None,
    keep_objects: Annotated[
        bool,
        typer.Option(
            "--keep-objects",
            help="The object store is that of the backed-up store: copy only what is missing.",
        ),
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Don't read stored bytes in the check.")
    ] = False,
    hold_queue: Annotated[
        bool,
        typer.Option(
            "--hold-queue",
            help="Hold all outgoing mail, since it may have been sent after the backup.",
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Restore a backup into an empty database and an empty object store.

    Stop all servers first. All differences that `merganser check` finds are printed, and what is
    newer than the backup. Clients read their state again. The exit code is 1 if data is damaged.

    Example: merganser restore /mnt/backup --keys /mnt/keys

    Example: merganser restore /mnt/backup --id 20261127T021500.000Z
    """


@declarations.command("log")
@implemented_in("merganser.commands.logs.log_command")
def print_log(
    component: Annotated[
        list[str] | None,
        typer.Option("--component", "-c", help="Part of the server, such as MTA; can be repeated."),
    ] = None,
    level: Annotated[
        str, typer.Option(help="Lowest level: DEBUG, INFO, WARNING, ERROR.")
    ] = "DEBUG",
    since: Annotated[
        str | None, typer.Option(help='Duration such as "2 hours", or a date and time.')
    ] = None,
    before: Annotated[
        str | None, typer.Option(help='Duration such as "1 hour", or a date and time.')
    ] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Username or address.")] = None,
    query: Annotated[
        str | None, typer.Option("--query", "-q", help="Words that an entry must have.")
    ] = None,
    queue_id: Annotated[str | None, typer.Option(help="Queue ID of a message.")] = None,
    message_id: Annotated[str | None, typer.Option(help="Message-ID of a message.")] = None,
    limit: Annotated[int, typer.Option(min=0, max=100_000, help="Number of entries.")] = 100,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Print new entries until Ctrl-C.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the newest entries of the log of all processes, the oldest of them first.

    A server can run at the same time. With --json each entry is a line.

    Example: merganser log --component MTA --level WARNING --since "2 hours"

    Example: merganser log --follow --query ada@example.org
    """
