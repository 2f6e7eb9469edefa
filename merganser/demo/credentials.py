"""The credentials of the demo accounts, stored in the data folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import CommandError

USERNAME = "demo"
ADMINISTRATOR_USERNAME = "demo-admin"
SECOND_USERNAME = "demo-second"
DOMAIN = "merganser.example"
ADDRESS = f"{USERNAME}@{DOMAIN}"


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """The credentials of a demo account. `password` is None if it was changed."""

    password: str | None
    key: str | None = None
    username: str = USERNAME
    address: str = ADDRESS

    @property
    def password_text(self) -> str:
        """The password as it is printed."""
        return self.password or "(changed since the account was created)"


@dataclass(frozen=True, slots=True)
class DemoAccounts:
    """The account with mail, one with the role ADMIN, and a second user without mail."""

    user: DemoAccount
    administrator: DemoAccount
    second: DemoAccount

    def by_title(self) -> dict[str, DemoAccount]:
        """Return the accounts by the title that is printed with them."""
        return {
            "User": self.user,
            "Administrator": self.administrator,
            "Second user": self.second,
        }


def account_file(data_folder: Path, username: str = USERNAME) -> Path:
    """Return the path of the file with the credentials of a demo account."""
    return data_folder / f"{username}.json"


def read_account_or_none(data_folder: Path, username: str = USERNAME) -> DemoAccount | None:
    """Read the stored credentials; None if there are none. Raises CommandError if damaged."""
    path = account_file(data_folder, username)
    try:
        return DemoAccount(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as problem:
        raise CommandError(f"{path} is damaged: remove it.") from problem
