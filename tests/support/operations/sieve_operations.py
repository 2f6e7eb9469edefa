"""Scripts in Sieve for tests."""

from typing import Any

from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.accounts.user_operations import run
from tests.support.stores.counter_check import rows

SHOWN = "scripts { id name content active size requires lastError }"
TOLD = f"{SHOWN} warnings {{ code message }}"


async def put(client: Client, text: str, *, name: str = "main", activate: bool = True) -> Any:
    """Give an account a script."""
    done = await run(client, "sieveScriptPut", TOLD, name=name, content=text, activate=activate)
    assert done["errors"] == []
    return done


async def active_script_error(world: Environment) -> Any:
    """The last error of the active script."""
    found = await rows(world, "SELECT last_error FROM sieve_scripts WHERE active")
    return found[0][0]
