"""Sample calls of mutations of Sieve scripts."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import Call, call

SCRIPTS_SELECTION = "scripts { id name content active size requires lastError }"
SCRIPT_CONTENT = 'require "fileinto";\nfileinto "Trash";\n'


@call
async def sieve_script_put(_ada: GraphQLClient, _root: GraphQLClient) -> Call:
    return Call(
        "sieveScriptPut",
        {"name": "main", "content": SCRIPT_CONTENT, "activate": True},
        SCRIPTS_SELECTION,
    )


@call
async def sieve_script_activate(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    await _put_script(ada, activate=True)
    await _put_script(ada, name="other")
    return Call("sieveScriptActivate", {"name": "other"}, SCRIPTS_SELECTION)


@call
async def sieve_script_deactivate(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    await _put_script(ada, activate=True)
    return Call("sieveScriptDeactivate", {}, "users { username }")


@call
async def sieve_script_delete(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    await _put_script(ada, activate=True)
    return Call("sieveScriptDelete", {"names": ["main"], "ignoreActive": True}, "deletedNames")


@call
async def sieve_script_rename(ada: GraphQLClient, _root: GraphQLClient) -> Call:
    await _put_script(ada)
    return Call("sieveScriptRename", {"name": "main", "newName": "other"}, SCRIPTS_SELECTION)


async def _put_script(ada: GraphQLClient, *, name: str = "main", activate: bool = False) -> None:
    input_fields = {"name": name, "content": SCRIPT_CONTENT, "activate": activate}
    assert (await Call("sieveScriptPut", input_fields)(ada))["errors"] == []
