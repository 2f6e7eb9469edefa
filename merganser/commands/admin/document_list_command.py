"""Implementation of `merganser documents list`."""

from typing import Any

from merganser.commands.environment_run import run_in_environment
from merganser.commands.terminal_output import print_json, print_table
from merganser.server.environment_factory import root_context
from merganser.settings.settings import Settings
from models.runtime.environment import Environment
from resolvers.admin import trusted_documents


def list_documents(as_json: bool) -> None:
    """Print all trusted documents."""
    documents = run_in_environment(_load_documents)
    if as_json:
        print_json(documents)
        return
    rows = [
        (document["hash"], " ".join(document["operations"]), document["added_at"])
        for document in documents
    ]
    print_table(("hash", "operations", "added at"), rows)


async def _load_documents(environment: Environment, _settings: Settings) -> list[dict[str, Any]]:
    return [
        {
            "hash": row.hash.hex(),
            "operations": row.operations,
            "added_at": row.added_at.isoformat(),
        }
        for row in await trusted_documents.list_documents(root_context(environment))
    ]
