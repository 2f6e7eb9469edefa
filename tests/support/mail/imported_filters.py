"""Filters that are imported from Sieve scripts."""

from typing import Any

from mail.filters.sieve_import import SieveImport, filters_and_problems_from_sieve_script
from mail.filters.sieve_to_actions import MailboxName

DAY = 86_400
REQUIRE = """require ["fileinto", "copy", "imap4flags", "body", "regex", "vacation", "mailbox",
  "special-use", "vnd.merganser.attachments", "comparator-i;ascii-numeric", "relational",
  "variables", "envelope", "date", "reject", "subaddress", "index", "mime"];"""


def import_text(text: str, *, max_filters: int = 400) -> SieveImport:
    return filters_and_problems_from_sieve_script(
        f"{REQUIRE}\n{text}", reply_interval=DAY, max_filters=max_filters
    )


def plain_action(action: Any) -> Any:
    """The action with mailbox paths, or with the special use in angle brackets."""

    def plain_value(value: Any) -> Any:
        if isinstance(value, MailboxName):
            return f"<{value.special_use}>" if value.special_use else value.path
        return [plain_value(item) for item in value] if isinstance(value, list) else value

    return {name: plain_value(value) for name, value in action.items()}
