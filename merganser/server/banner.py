"""What a server with a demo account says once it answers."""

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

QUERY = (
    "{ viewer { user { mailbox(by: {specialUse: INBOX}) "
    "{ messages(first: 3) { nodes { subject } } } } } }"
)
_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - not where we listen: how to get there


def shown(settings: Settings, account: DemoAccount) -> None:
    """Print where to go and what to try, each line fit to be copied."""
    console = Console(soft_wrap=True, highlight=False, markup=False)
    password = account.password or "(not the one we made: somebody has changed it)"
    facts = (
        ("GraphiQL", address(settings)),
        ("User", account.username),
        ("Password", password),
        ("API key", account.key or ""),
    )
    mail = [
        (name, place)
        for name, place in sockets.listen_addresses(settings).items()
        if name != "HTTP"
    ]
    console.print("\nMerganser is running. Ctrl-C ends it.\n", style="bold")
    for name, fact in (*facts, *mail):
        console.print(f"  {name:<12}{fact}")
    console.print("\nRead three subjects:\n", style="bold")
    console.print(f"  {curl(settings, account)}")
    console.print("\nSend the account a message:\n", style="bold")
    console.print(f"  {send(settings, account)}\n")


def send(settings: Settings, account: DemoAccount) -> str:
    """A command that sends the account a message, from whatever shell it is typed into."""
    usual = settings.lmtp == Settings.model_fields["lmtp"].default
    there = "" if usual else f"MERGANSER_LMTP={shlex.quote(settings.lmtp)} "
    return f"{there}{_program()} send-test --to {account.address}"


def _program() -> str:
    """How we are called from the folder we were started in."""
    if sys.prefix == sys.base_prefix and shutil.which("merganser"):
        return "merganser"
    beside, here = Path(sys.executable).with_name("merganser"), Path.cwd()
    program = beside if beside.exists() else Path(sys.executable)  # a venv need not be in PATH
    near = program.relative_to(here) if program.is_relative_to(here) else program
    return shlex.quote(str(near)) + ("" if program == beside else " -m merganser")


def address(settings: Settings) -> str:
    """Where GraphQL and GraphiQL are, seen from this machine."""
    host, port = split_host_port(settings.http)
    bare = _EVERYWHERE.get(host) or (f"[{host}]" if ":" in host else host)
    return f"http://{bare}:{port}/graphql"


def curl(settings: Settings, account: DemoAccount) -> str:
    """A command that works as it stands."""
    words = [
        "curl",
        "-s",
        address(settings),
        "-H",
        f"Authorization: Bearer {account.key}",
        "-H",
        "Content-Type: application/json",
        "-d",
        json.dumps({"query": QUERY}),
    ]
    return shlex.join(words)
