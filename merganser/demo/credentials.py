"""The credentials of the demo account, noted beside the store."""

import json
from dataclasses import dataclass
from pathlib import Path

from merganser.errors import Trouble

NAME = "demo"
ADDRESS = "demo@merganser.example"


@dataclass(frozen=True, slots=True)
class DemoAccount:
    """How to sign in to the demo account. `password` is None if somebody has changed it."""

    password: str | None
    key: str | None = None
    username: str = NAME
    address: str = ADDRESS


def read_account(data: Path) -> DemoAccount | None:
    """Return the noted credentials; None if there is no note. Raises Trouble if it is damaged."""
    try:
        return DemoAccount(**json.loads((data / "demo.json").read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as problem:
        raise Trouble(f"{data / 'demo.json'} is damaged: remove it") from problem
