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
        help="Read from stdin what locks the passwords of connectors, 12 to 1024 characters.",
    ),
]

declarations = typer.Typer()


@declarations.command("serve")
@implemented_in("merganser.commands.server.serve_command")
def serve(
    demo: Annotated[
        bool, typer.Option("--demo", help="Make the demo account first, and say how to use it.")
    ] = False,
    demo_count: Annotated[int, typer.Option(min=1, hidden=True)] = 520,
    workers: Annotated[
        int,
        typer.Option(
            min=1, max=256, help="Processes that listen; from 2 on one works behind them."
        ),
    ] = 1,
) -> None:
    """Run the server: HTTP, LMTP and the background workers, in one process or several.

    The store is created or migrated first. Ctrl-C or SIGTERM stops the server. No accepted
    message is lost.

    Example: MERGANSER_HTTP_LISTEN=127.0.0.1:9000 merganser serve
    """


@declarations.command("init")
@implemented_in("merganser.commands.server.init_command")
def init() -> None:
    """Make the store, or migrate it, and no more.

    Example: MERGANSER_DATABASE_URL=postgresql://mail@localhost/mail merganser init
    """


@declarations.command("demo")
@implemented_in("merganser.commands.server.demo_command")
def create_demo_account(
    count: Annotated[int, typer.Option(min=1, help="How many letters.")] = 520,
) -> None:
    """Make a demo account with letters of all kinds, and say how to get in.

    Once made it is only shown: what you changed or deleted stays so.

    Example: merganser demo
    """


@declarations.command("export")
@implemented_in("merganser.commands.transfer.export_command")
def export_account(
    path: Annotated[Path, typer.Argument(help="The file: .zip, .tar, .jsonl or .mbox.")],
    user: Annotated[str, typer.Option("--user", "-u", help="Whose: user name or address.")],
    kind: Annotated[
        str | None,
        typer.Option(
            "--format", help="EML_ZIP, MAILDIR_TAR, JSON or MBOX. Without it: by the file's name."
        ),
    ] = None,
    mailbox: Annotated[str | None, typer.Option(help="This mailbox alone.")] = None,
    settings: Annotated[bool, typer.Option(help="Settings and key-values too.")] = True,
    passphrase_stdin: PassphraseStdin = False,
) -> None:
    """Write an account into one file: folders, messages, flags, dates and settings.

    `merganser import` restores the account on this server or another one. An mbox file has only
    the messages. An existing file is not overwritten, and an incomplete file is removed. The file
    has the passwords of connectors only if a passphrase encrypts them.

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
            help="An mbox file, a Maildir, a folder of .eml, or an archive: .zip, .tar, .jsonl."
        ),
    ],
    user: Annotated[str, typer.Option("--user", "-u", help="Whose mail: user name or address.")],
    mailbox: Annotated[
        str | None,
        typer.Option(help="One mailbox for all of it. Without it: the folders of the source."),
    ] = None,
    settings: Annotated[
        bool, typer.Option(help="Settings too, where an archive of ours has them.")
    ] = True,
    passphrase_stdin: PassphraseStdin = False,
) -> None:
    """Bring in mail that another program has kept, or an account that was exported.

    Stopped or killed at any message, it goes on from there when it is run again. What a mailbox
    has already is not stored twice. Flags and times of arrival are kept.

    Example: merganser import ~/Maildir --user ada

    Example: merganser import old.mbox --user ada --mailbox Archive/2019

    Example: merganser import ada.zip --user ada

    Example: merganser import ada.zip --user ada --passphrase-stdin < passphrase.txt
    """


@declarations.command("send-test")
@implemented_in("merganser.commands.server.send_test_command")
def send_test(
    to: Annotated[str, typer.Option(help="Address; the demo account's, where there is one.")] = "",
    sender: Annotated[str, typer.Option("--from", help="Sender.")] = "tester@merganser.example",
    subject: Annotated[str, typer.Option(help="Subject.")] = "A test from merganser",
    attach: Annotated[list[Path] | None, typer.Option(help="A file to send along.")] = None,
) -> None:
    """Send a message to the running server, by LMTP, and say what it answered.

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
def print_settings_table() -> None:
    """Print what can be set, as a Markdown table: environment variables and their defaults.

    Example: merganser settings
    """


@declarations.command("doctor")
@implemented_in("merganser.commands.server.doctor_command")
def run_doctor(
    as_json: JsonOption = False,
) -> None:
    """Look at store, disk, permissions, ports and DNS, and say what to do.

    Ends with 1 where something needs to be done.

    Example: merganser doctor
    """


@declarations.command("check")
@implemented_in("merganser.commands.server.check_command")
def check_store(
    repair: Annotated[
        bool, typer.Option("--repair", help="Mend what can be mended; needs the server stopped.")
    ] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Do not read every stored byte again.")
    ] = False,
    restored: Annotated[
        bool,
        typer.Option(
            "--restored",
            help="Database and objects were restored to the same moment: make all clients read "
            "their state again. Needs the server stopped.",
        ),
    ] = False,
) -> None:
    """Compute again what the store says of itself, and print all differences as JSON.

    Ends with 1 where a difference is left.

    Example: merganser check --quick
    """
