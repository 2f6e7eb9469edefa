"""The credentials of the demo account, stored in the data folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import CommandError

USERNAME = "demo"
ADDRESS = "demo@merganser.example"


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """The credentials of the demo account. `password` is None if it was changed."""

    password: str | None
    key: str | None = None
    username: str = USERNAME
    address: str = ADDRESS


def read_account(data_folder: Path) -> DemoAccount | None:
    """Read the stored credentials; None if there are none. Raises CommandError if damaged."""
    try:
        return DemoAccount(**json.loads((data_folder / "demo.json").read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as problem:
        raise CommandError(f"{data_folder / 'demo.json'} is damaged: remove it") from problem
