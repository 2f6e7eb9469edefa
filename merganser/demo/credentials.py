"""The credentials of the demo account, stored in the data folder."""

import json
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import Trouble

NAME = "demo"
ADDRESS = "demo@merganser.example"


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """The credentials of the demo account. `password` is None if it was changed."""

    password: str | None
    key: str | None = None
    username: str = NAME
    address: str = ADDRESS


def read_account(data: Path) -> DemoAccount | None:
    """Read the stored credentials; None if there are none. Raises CommandError if damaged."""
    try:
        return DemoAccount(**json.loads((data / "demo.json").read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as problem:
        raise Trouble(f"{data / 'demo.json'} is damaged: remove it") from problem
