"""Calls about scripts."""

from tests.conftest import Client
from tests.support.sample_mutations.mutation_call import Call, call

SHOWN = "scripts { id name content active size requires lastError }"
TEXT = 'require "fileinto";\nfileinto "Trash";\n'


@call
async def sieve_script_put(_ada: Client, _root: Client) -> Call:
    return Call("sieveScriptPut", {"name": "main", "content": TEXT, "activate": True}, SHOWN)


@call
async def sieve_script_activate(ada: Client, _root: Client) -> Call:
    await _there(ada, activate=True)
    await _there(ada, name="other")
    return Call("sieveScriptActivate", {"name": "other"}, SHOWN)


@call
async def sieve_script_deactivate(ada: Client, _root: Client) -> Call:
    await _there(ada, activate=True)
    return Call("sieveScriptDeactivate", {}, "users { username }")


@call
async def sieve_script_delete(ada: Client, _root: Client) -> Call:
    await _there(ada, activate=True)
    return Call("sieveScriptDelete", {"names": ["main"], "ignoreActive": True}, "deletedNames")


@call
async def sieve_script_rename(ada: Client, _root: Client) -> Call:
    await _there(ada)
    return Call("sieveScriptRename", {"name": "main", "newName": "other"}, SHOWN)


async def _there(ada: Client, *, name: str = "main", activate: bool = False) -> None:
    given = {"name": name, "content": TEXT, "activate": activate}
    assert (await Call("sieveScriptPut", given)(ada))["errors"] == []
