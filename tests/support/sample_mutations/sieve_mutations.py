"""Sample calls of mutations of Sieve scripts."""

from tests.conftest import GraphQLClient
from tests.support.sample_mutations.mutation_call import MutationCall, register_call

SCRIPTS_SELECTION = "sieveScripts { id name content active size requires lastError }"
SCRIPT_CONTENT = 'require "fileinto";\nfileinto "Trash";\n'


@register_call
async def sieve_script_set(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "sieveScriptSet",
        {"name": "main", "content": SCRIPT_CONTENT, "activate": True},
        SCRIPTS_SELECTION,
    )


@register_call
async def sieve_script_activate(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await _put_script(ada, activate=True)
    await _put_script(ada, name="other")
    return MutationCall(
        "sieveScriptActivate", {"sieveScript": {"name": "other"}}, SCRIPTS_SELECTION
    )


@register_call
async def sieve_script_deactivate(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await _put_script(ada, activate=True)
    return MutationCall("sieveScriptDeactivate", {}, "users { username }")


@register_call
async def sieve_script_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await _put_script(ada, activate=True)
    return MutationCall(
        "sieveScriptDelete",
        {"sieveScripts": [{"name": "main"}], "ignoreActive": True},
        "deletedIds",
    )


@register_call
async def sieve_script_rename(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    await _put_script(ada)
    return MutationCall(
        "sieveScriptRename",
        {"sieveScript": {"name": "main"}, "newName": "other"},
        SCRIPTS_SELECTION,
    )


async def _put_script(ada: GraphQLClient, *, name: str = "main", activate: bool = False) -> None:
    input_fields = {"name": name, "content": SCRIPT_CONTENT, "activate": activate}
    assert (await MutationCall("sieveScriptSet", input_fields)(ada))["errors"] == []
