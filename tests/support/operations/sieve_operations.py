"""Scripts in Sieve for tests."""

from typing import Any

from tests.conftest import Client
from tests.support.accounts.user_operations import run

SHOWN = "scripts { id name content active size requires lastError }"
TOLD = f"{SHOWN} warnings {{ code message }}"


async def put(client: Client, text: str, *, name: str = "main", activate: bool = True) -> Any:
    """Give an account a script."""
    done = await run(client, "sieveScriptPut", TOLD, name=name, content=text, activate=activate)
    assert done["errors"] == []
    return done
