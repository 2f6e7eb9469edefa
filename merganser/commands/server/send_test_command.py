"""Implementation of `merganser send-test`."""

from pathlib import Path

import typer

from merganser.commands.server import smtp_test_message
from merganser.demo.credentials import read_account_or_none
from merganser.errors import EXIT_USAGE, CommandError
from merganser.settings.settings import read_settings


def send_test_message_over_lmtp(
    to: str, sender: str, subject: str, attach: list[Path] | None
) -> None:
    """Send a test message over LMTP, and print the reply."""
    settings = read_settings()
    account = None if to else read_account_or_none(settings.data)
    if not to and account is None:
        raise CommandError("--to RECIPIENT is required.", exit_code=EXIT_USAGE)
    recipient = to or (account.address if account else "")
    text = "This is a test message. If you can read it, mail comes in.\n"
    message = smtp_test_message.TestMessage(recipient, sender, subject, text, tuple(attach or ()))
    typer.echo(f"{recipient}: {smtp_test_message.send_over_lmtp(settings.lmtp_listen, message)}")
