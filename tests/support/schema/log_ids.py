"""Search of the logs that the API returns for the IDs of database rows."""

import re
from typing import Any

from tests.conftest import GraphQLClient

LOGS = """{ auditLog(first: 50) { nodes { before after reason } }
  securityLog(first: 50) { nodes { detail by } }
  tasks(first: 50) { nodes { error result } } }"""
DATABASE_ID = re.compile(r"(?<![0-9A-Za-z_-])[0-9]{15,}(?![0-9A-Za-z_-])")


def find_database_ids(value: Any, path: str = "") -> list[str]:
    """Return the path and text of each value in a JSON value that contains the ID of a row."""
    if isinstance(value, dict):
        names = find_database_ids(list(value), path)
        members = [
            database_id
            for name in value
            for database_id in find_database_ids(value[name], f"{path}.{name}")
        ]
        return [*names, *members]
    if isinstance(value, list):
        return [database_id for item in value for database_id in find_database_ids(item, path)]
    has_id = isinstance(value, str | int) and DATABASE_ID.search(str(value))
    return [f"{path}: {value}"] if has_id else []


async def assert_logs_have_no_database_ids(root: GraphQLClient) -> None:
    """Fail if the audit log, the security logs or the tasks contain the ID of a row."""
    response = await root.execute(LOGS)
    assert "errors" not in response, response
    assert find_database_ids(response["data"]) == []
