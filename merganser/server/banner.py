"""The banner of a server with a demo account: addresses, credentials and example commands."""

import json
import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from merganser.demo.credentials import DemoAccount
from merganser.server import sockets
from merganser.server.sockets import split_host_port
from merganser.settings.settings import Settings

EXAMPLE_QUERY = (
    "{ viewer { user { mailbox(by: {specialUse: INBOX}) "
    "{ messages(first: 3) { nodes { subject } } } } } }"
)
_LOOPBACK_OF_WILDCARD = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - not bound here, but replaced by loopback


def print_demo_banner(settings: Settings, account: DemoAccount) -> None:
    """Print the addresses and credentials, and commands that can be copied."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    password = account.password or "(not the one we made: somebody has changed it)"
    account_lines = (
        ("GraphiQL", graphql_url(settings)),
        ("User", account.username),
        ("Password", password),
        ("API key", account.key or ""),
    )
    mail_addresses = [
        (name, listen_address)
        for name, listen_address in sockets.listen_addresses(settings).items()
        if name != "HTTP"
    ]
    console.print("\nMerganser is running. Ctrl-C ends it.\n", style="bold")
    for name, value in (*account_lines, *mail_addresses):
        console.print(f"  {name:<16}{value}")
    console.print("\nRead three subjects:\n", style="bold")
    console.print(f"  {curl_command(settings, account)}")
    console.print("\nSend the account a message:\n", style="bold")
    console.print(f"  {send_test_command(settings, account)}\n")


def send_test_command(settings: Settings, account: DemoAccount) -> str:
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
