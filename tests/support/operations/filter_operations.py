"""What tests of filters share: documents, and those who use them."""

from collections.abc import Sequence
from typing import Any

from tests.conftest import Client
from tests.support.accounts.user_operations import ERRORS, id_of

QUERY = "from to subject listId text hasAttachment size query header { key value raw } "
QUERY += "regex { key pattern }"
ACTION = """seen flag delete spam mailbox { path } copyTo { path } targets labels removeLabels
  reply { subject text html } webhook { url } stop"""
SHOWN = f"""id name order active metaData matchCount queryText actionText sieve createdAt
  user {{ username }} query {{ {QUERY} all {{ {QUERY} }} any {{ {QUERY} }} not {{ {QUERY} }} }}
  action {{ {ACTION} }}"""
LIST = f"""query ($first: Int, $after: String) {{ viewer {{ user {{
  filters(first: $first, after: $after) {{
    totalCount nodes {{ {SHOWN} }} pageInfo {{ endCursor hasNextPage }} }} }} }} }}"""
TEST = """query ($user: UserRef, $message: MessageRef, $raw: String) {
  filterTest(user: $user, message: $message, raw: $raw) {
    filter { name } matches actions } }"""
NODE = f"query ($id: ID!) {{ filter(id: $id) {{ {SHOWN} }} }}"


def _mutation(name: str, payload: str) -> str:
    kind = "IdsInput" if name == "filterDelete" else f"{name[0].upper()}{name[1:]}Input"
    return f"mutation ($input: {kind}!) {{ {name}(input: $input) {{ {payload} {ERRORS} }} }}"


CREATE = _mutation("filterCreate", f"filter {{ {SHOWN} }}")
UPDATE = _mutation("filterUpdate", f"filters {{ {SHOWN} }}")
DELETE = _mutation("filterDelete", "deletedIds")
IMPORT = _mutation(
    "filterImport", f"filters {{ {SHOWN} }} warnings {{ code message path }} replayed"
).replace("message path index", "message path index ... on SieveCompileError { line column }")
APPLY = _mutation("filterApply", "task { id kind state total }")


async def create(client: Client, query: Any, action: Any, **given: Any) -> tuple[Any, Any]:
    given = {"query": query, "action": action, **given}
    answer = (await client(CREATE, input=given))["filterCreate"]
    return answer["filter"], answer["errors"]


async def made(client: Client, query: Any, action: Any, **given: Any) -> Any:
    """A filter that is there now."""
    one, errors = await create(client, query, action, **given)
    assert errors == []
    return one


async def change(client: Client, *ids: str, **given: Any) -> tuple[Any, Any]:
    answer = (await client(UPDATE, input={"ids": ids, "set": given}))["filterUpdate"]
    return answer["filters"], answer["errors"]


async def remove(client: Client, *ids: str) -> Any:
    return (await client(DELETE, input={"ids": ids}))["filterDelete"]


async def imported(client: Client, content: str, **given: Any) -> Any:
    """The whole payload."""
    return (await client(IMPORT, input={"content": content, **given}))["filterImport"]


async def listed(client: Client, **page: Any) -> Any:
    return (await client(LIST, **page))["viewer"]["user"]["filters"]


async def looked_at(client: Client, **given: Any) -> Any:
    return (await client(TEST, **given))["filterTest"]


async def apply(client: Client, *ids: str, **select: Any) -> tuple[Any, Any]:
    answer = (await client(APPLY, input={"ids": ids, "select": select}))["filterApply"]
    return answer["task"], answer["errors"]


def error_codes_and_paths(errors: Sequence[Any]) -> list[tuple[str, list[str]]]:
    """The code and path of each error."""
    return [(one["code"], one["path"]) for one in errors]


def user_ref(client: Client) -> dict[str, str]:
    """The reference to a user by id."""
    return {"id": id_of(client)}
