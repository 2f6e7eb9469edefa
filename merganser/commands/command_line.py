"""The command line with its top-level commands."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick
# ruff: noqa: PLR0913, PLR0917 - a parameter for each option: typer reads them

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from merganser.commands.environment_run import run_in_environment
from merganser.commands.progress_bar import create_progress_bar
from merganser.errors import EXIT_USAGE, CommandError

if TYPE_CHECKING:
    from mail.archives.mail_sources import MailSource
    from merganser.commands.account_import import ShowImportProgress
    from merganser.demo.credentials import DemoAccount
    from merganser.doctor.findings import Finding
    from merganser.settings.settings import Settings
    from models.runtime.environment import Environment
    from resolvers.transfer.import_writer import ImportOutcome

PassphraseStdin = Annotated[
    bool,
    typer.Option(
        "--passphrase-stdin",
        help="Read from stdin what locks the passwords of connectors, 12 to 1024 characters.",
    ),
]


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
    """Run the server: HTTP, LMTP and what goes on behind them, in one process or several.

    The store is made or migrated first. Ctrl-C or SIGTERM ends it; what it has accepted by
    then is safe.

    Example: MERGANSER_HTTP=127.0.0.1:9000 merganser serve
    """
    import uvloop

    from merganser.server.observability import logs
    from merganser.settings.settings import read_settings

    settings = read_settings()
    logs.configure_logging("WARNING" if demo else settings.log_level, settings.log_format)
    if workers > 1:
        if demo:
            raise CommandError(
                "make the demo account first: `merganser demo`", exit_code=EXIT_USAGE
            )
        from merganser.server.processes.process_supervisor import run_processes as run_all

        run_all(settings, workers)
        return
    from merganser.server import lifecycle

    if not demo:
        uvloop.run(lifecycle.serve(settings))  # asyncio.run would leave uvloop unused
        return
    from merganser.server import banner

    demo_accounts: list[DemoAccount] = []

    async def prepare_demo_account(environment: "Environment") -> None:
        demo_accounts.append(await _create_demo_account(environment, settings, demo_count))

    def print_banner() -> None:
        logs.configure_logging(settings.log_level, settings.log_format)
        banner.print_demo_banner(settings, demo_accounts[0])

    uvloop.run(
        lifecycle.serve(settings, before_listening=prepare_demo_account, after_start=print_banner)
    )


async def _create_demo_account(
    environment: "Environment", settings: "Settings", message_count: int
) -> "DemoAccount":
    from merganser.demo.account import ensure_demo_account

    with create_progress_bar() as bar:
        task = bar.add_task("Writing letters to the demo account", total=None, visible=False)

        def report_progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, visible=True)

        return await ensure_demo_account(environment, settings.data, message_count, report_progress)


def init() -> None:
    """Make the store, or migrate it, and no more.

    Example: MERGANSER_STORE=postgresql://mail@localhost/mail merganser init
    """

    async def print_data_folder(_world: "Environment", settings: "Settings") -> None:
        typer.echo(f"The store is ready, its data in {settings.data.absolute()}.")

    run_in_environment(print_data_folder, migrate=True)


def create_demo_account(
    count: Annotated[int, typer.Option(min=1, help="How many letters.")] = 520,
) -> None:
    """Make a demo account with letters of all kinds, and say how to get in.

    Once made it is only shown: what you changed or deleted stays so.

    Example: merganser demo
    """

    async def work(environment: "Environment", settings: "Settings") -> None:
        account = await _create_demo_account(environment, settings, count)
        typer.echo(f"User      {account.username} ({account.address})")
        typer.echo(f"Password  {account.password or '(somebody has changed it)'}")
        typer.echo(f"API key   {account.key}")

    run_in_environment(work, migrate=True)


def bring(
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
    from merganser.commands.account_import import ImportOrder
    from merganser.commands.account_import import import_account as work_through

    passphrase = _read_passphrase(stdin=passphrase_stdin)

    async def run_import(environment: "Environment", known: "Settings") -> "ImportOutcome":
        order = ImportOrder(path.absolute(), user, mailbox, known.data, settings, passphrase)
        with create_progress_bar() as bar:

            def start_progress(origin: "MailSource", at: int) -> "ShowImportProgress":
                task = bar.add_task(f"Importing {path.name}", total=origin.total, completed=at)
                return lambda at: bar.update(task, completed=at)

            return await work_through(environment, order, start_progress)

    try:
        outcome = run_in_environment(run_import)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise CommandError(
            "stopped; run it again and it goes on from here", exit_code=130
        ) from None
    typer.echo(f"{outcome.stored} messages imported.")
    if outcome.known:
        typer.echo(f"{outcome.known} were there already.")
    for skipped_name, reason in outcome.skipped:
        typer.echo(f"Skipped {skipped_name}: {reason}.")
    if outcome.untold:
        typer.echo(f"Skipped {outcome.untold} more.")


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

    What `merganser import` brings back as it was, on this server or another. An mbox has the
    messages alone. No file is written over; one that is not whole is not left behind. The
    passwords of connectors are in it only where a passphrase locks them.

    Example: merganser export ada.zip --user ada

    Example: merganser export sent.mbox --user ada --mailbox Sent

    Example: merganser export ada.zip --user ada --passphrase-stdin < passphrase.txt
    """
    from mail.archives.archive_writer import ExportFormat
    from merganser.commands import account_export

    if kind is not None and kind.upper() not in ExportFormat.__members__:
        format_names = ", ".join(ExportFormat.__members__)
        raise CommandError(f"--format is one of {format_names}", exit_code=EXIT_USAGE)
    chosen = ExportFormat(kind.upper()) if kind else account_export.format_from_file_name(path)
    passphrase = _read_passphrase(stdin=passphrase_stdin)

    async def run_export(
        environment: "Environment", _settings: "Settings"
    ) -> "account_export.ExportSummary":
        order = account_export.ExportOrder(
            path.absolute(), user, chosen, mailbox, settings, passphrase
        )
        with create_progress_bar() as bar:

            def start_progress(total: int) -> "ShowImportProgress":
                task = bar.add_task(f"Exporting {user}", total=total)
                return lambda done: bar.update(task, completed=done)

            return await account_export.export_account(environment, order, start_progress)

    try:
        outcome = run_in_environment(run_export)
    except (KeyboardInterrupt, asyncio.CancelledError):
        raise CommandError("stopped; nothing was written", exit_code=130) from None
    typer.echo(f"{outcome.messages} messages exported, {outcome.bytes} bytes.")
    for text in outcome.damaged_messages:
        typer.echo(f"Left out {text}.")
    if outcome.damaged_messages:
        raise typer.Exit(1)


def _read_passphrase(*, stdin: bool) -> str | None:
    if not stdin:
        return None
    return sys.stdin.readline().rstrip("\r\n")


def send_test(
    to: Annotated[str, typer.Option(help="Address; the demo account's, where there is one.")] = "",
    sender: Annotated[str, typer.Option("--from", help="Sender.")] = "tester@merganser.example",
    subject: Annotated[str, typer.Option(help="Subject.")] = "A test from merganser",
    attach: Annotated[list[Path] | None, typer.Option(help="A file to send along.")] = None,
) -> None:
    """Send a message to the running server, by LMTP, and say what it answered.

    Example: merganser send-test --to ada@example.org --attach photo.jpg
    """
    from merganser.commands import smtp_test_message
    from merganser.demo.credentials import read_account
    from merganser.settings.settings import read_settings

    settings = read_settings()
    account = None if to else read_account(settings.data)
    if not to and account is None:
        raise CommandError("say with --to whom to send it to", exit_code=EXIT_USAGE)
    to = to or (account.address if account else "")
    text = "This is a test message. If you can read it, mail comes in.\n"
    test = smtp_test_message.TestMessage(to, sender, subject, text, tuple(attach or ()))
    typer.echo(f"{to}: {smtp_test_message.send_over_lmtp(settings.lmtp, test)}")


def print_schema() -> None:
    """Print the GraphQL schema.

    Example: merganser schema > schema.graphql
    """
    from graph.schema import schema as whole

    typer.echo(whole.as_str())


def print_settings_table() -> None:
    """Print what can be set, as a Markdown table: environment variables and their defaults.

    Example: merganser settings
    """
    from merganser.settings.settings import settings_table

    typer.echo(settings_table())


def run_doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at store, disk, permissions, ports and DNS, and say what to do.

    Ends with 1 where something needs to be done.

    Example: merganser doctor
    """
    import uvloop

    from merganser.doctor.checks import run_checks
    from merganser.doctor.findings import Verdict
    from merganser.settings.settings import read_settings

    found = uvloop.run(run_checks(read_settings()))
    if as_json:
        _print_json([_finding_as_json(each) for each in found])
    else:
        _print_findings(found)
    if any(each.verdict is Verdict.ACTION for each in found):
        raise typer.Exit(1)


def _finding_as_json(finding: "Finding") -> dict[str, str]:
    from dataclasses import asdict

    return {name: str(value) for name, value in asdict(finding).items()}


def _print_findings(found: "list[Finding]") -> None:
    from rich.text import Text

    from merganser.commands.terminal_tables import print_table

    colours = {"ok": "green", "hint": "yellow", "action": "bold red"}
    rows = [
        (Text(each.verdict, colours[each.verdict]), each.subject, each.found, each.todo)
        for each in found
    ]
    print_table(("", "what", "found", "to do"), rows)


def _print_json(value: object) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def check(
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
    from merganser.server.store.store_use import use_exclusively

    async def run_check(environment: "Environment", _settings: "Settings") -> dict[str, object]:
        from mail.consistency import check_consistency
        from mail.maintenance import restore_mark

        if restored:
            await restore_mark.begin_after_consistent_restore(environment)
        with create_progress_bar() as bar:
            task = bar.add_task("Checking", total=None)

            def report_progress(subject: str, done: int, total: int | None) -> None:
                bar.update(task, description=subject, completed=done, total=total)

            report = await check_consistency(
                environment, repair=repair, reads_blobs=not quick, progress=report_progress
            )
        return report.to_json()

    async def run_check_exclusively(
        environment: "Environment", settings: "Settings"
    ) -> dict[str, object]:
        async with use_exclusively(environment, settings, "repair"):
            return await run_check(environment, settings)

    report = run_in_environment(run_check_exclusively if repair or restored else run_check)
    _print_json(report)
    if not report["whole"]:
        raise typer.Exit(1)


def print_version_and_exit(is_requested: bool) -> None:
    """Print the version, and end."""
    if is_requested:
        from importlib.metadata import version as of

        typer.echo(f"merganser {of('merganser')}")
        raise typer.Exit


def main_command(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=print_version_and_exit, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Mail behind one GraphQL API.

    Environment variables set it up: `merganser settings` lists them. What changes while it runs
    is stored: `merganser setting list`.
    """


def create_command_line() -> typer.Typer:
    """Create the command line with all commands."""
    from merganser.commands import certificates, connectors, domains, trusted_documents, users
    from merganser.commands import keys as commands_keys
    from merganser.commands import settings as commands_settings

    app = typer.Typer(
        name="merganser",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(main_command)
    commands: dict[str, Callable[..., None]] = {
        "serve": serve,
        "init": init,
        "demo": create_demo_account,
        "export": export_account,
        "import": bring,
        "send-test": send_test,
        "schema": print_schema,
        "settings": print_settings_table,
        "doctor": run_doctor,
        "check": check,
    }
    for name, command in commands.items():
        app.command(name)(command)
    app.add_typer(users.user_commands(), name="user")
    app.add_typer(users.token_commands(), name="token")
    app.add_typer(domains.domain_commands(), name="domain")
    app.add_typer(certificates.certificate_commands(), name="certificate")
    app.add_typer(connectors.connector_commands(), name="connector")
    app.add_typer(trusted_documents.document_commands(), name="documents")
    app.add_typer(commands_settings.setting_commands(), name="setting")
    app.add_typer(commands_keys.key_commands(), name="keys")
    return app
