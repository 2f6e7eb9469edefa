"""The banner of a server with a demo account: addresses, credentials and example commands."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from merganser.demo.credentials import DemoAccount, DemoAccounts
from merganser.server import sockets
from merganser.server.sockets import split_host_port
from merganser.settings.settings import Settings

EXAMPLE_QUERY = (
    "{ viewer { user { mailbox(by: {specialUse: INBOX}) "
    "{ messages(first: 3) { nodes { subject } } } } } }"
)
_LOOPBACK_OF_WILDCARD = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - not bound here, but replaced by loopback


def print_demo_banner(settings: Settings, accounts: DemoAccounts) -> None:
    """Print the addresses and credentials, and commands that can be copied."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    account = accounts.user
    address_lines = (
        ("GraphiQL", graphql_url(settings)),
        ("Documentation", graphql_url(settings).removesuffix("graphql") + "docs/"),
    )
    mail_addresses = [
        (name, listen_address)
        for name, listen_address in sockets.listen_addresses(settings).items()
        if name != "HTTP"
    ]
    console.print("\nMerganser is running. Press Ctrl-C to stop it.\n", style="bold")
    for name, value in (*address_lines, *mail_addresses):
        console.print(f"  {name:<16}{value}")
    if settings.offline_sink is not None:
        console.print(f"  {'Outgoing mail':<16}{settings.offline_sink.resolve()}{os.sep}")
        console.print(f"  {'':<16}Nothing is sent to other servers: this folder is a local sink.")
    for title, demo_account in accounts.by_title().items():
        console.print(f"\n  {title:<16}{demo_account.username}")
        console.print(f"  {'Password':<16}{demo_account.password_text}")
        console.print(f"  {'API key':<16}{demo_account.key or ''}")
    console.print("\nRead three subjects:\n", style="bold")
    console.print(f"  {curl_command(settings, account)}")
    console.print("\nSend the account a message:\n", style="bold")
    console.print(f"  {test_message_shell_command(settings, account)}\n")


def test_message_shell_command(settings: Settings, account: DemoAccount) -> str:
    """The shell command that sends a test message to the demo account."""
    is_default_lmtp = settings.lmtp_listen == Settings.model_fields["lmtp_listen"].default
    lmtp_variable = (
        "" if is_default_lmtp else f"MERGANSER_LMTP_LISTEN={shlex.quote(settings.lmtp_listen)} "
    )
    return f"{lmtp_variable}{_shell_command_of_merganser()} send-test --to {account.address}"


def _shell_command_of_merganser() -> str:
    """How to call `merganser` from the current folder, quoted for a shell."""
    if sys.prefix == sys.base_prefix and shutil.which("merganser"):
        return "merganser"
    script, current_folder = Path(sys.executable).with_name("merganser"), Path.cwd()
    program = script if script.exists() else Path(sys.executable)  # the venv may not be in PATH
    relative_path = (
        program.relative_to(current_folder) if program.is_relative_to(current_folder) else program
    )
    return shlex.quote(str(relative_path)) + ("" if program == script else " -m merganser")


def graphql_url(settings: Settings) -> str:
    """The URL of GraphQL and GraphiQL on this machine."""
    host, port = split_host_port(settings.http_listen)
    url_host = _LOOPBACK_OF_WILDCARD.get(host) or (f"[{host}]" if ":" in host else host)
    return f"http://{url_host}:{port}/graphql"


def curl_command(settings: Settings, account: DemoAccount) -> str:
    """A curl command that sends the example query with the API key of the demo account."""
    arguments = [
        "curl",
        "-s",
        graphql_url(settings),
        "-H",
        f"Authorization: Bearer {account.key}",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps({"query": EXAMPLE_QUERY}),
    ]
    return shlex.join(arguments)
