"""What the changes of nodes share: rows that must exist, and entries of the audit log."""

from collections.abc import Sequence
from typing import Any

from sqlmodel import col

from models.cluster.nodes import ClusterNode
from models.errors import require_all_found
from models.store.columns import ColumnRow
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.cluster.loaders import select_nodes
from resolvers.context import Context
from resolvers.pagination import read_by_keys

_LOGGED_COLUMNS = ("host", "port", "kind", "tag", "weight", "state")


async def require_nodes(ctx: Context, node_ids: Sequence[int]) -> list[ColumnRow]:
    """Load nodes in the order of the ids, each once.

    Raises NotFound if one does not exist.
    """
    found = await read_by_keys(ctx, select_nodes(), col(ClusterNode.id), list(node_ids))
    rows = {row.id: row for row in found if row}
    require_all_found(node_ids, rows)
    return list(rows.values())


def node_log_values(row: Any) -> dict[str, Any]:
    """Return the values of a node for the audit log."""
    return {name: getattr(row, name) for name in _LOGGED_COLUMNS}


def changed_node_log_entry(mutation: str, before: Any, after: Any) -> NewAuditLogEntry:
    """Return the audit log entry of a changed node, with the values that differ."""
    old, new = node_log_values(before), node_log_values(after)
    changed_names = [name for name in old if old[name] != new[name]]
    return NewAuditLogEntry(
        mutation,
        "ClusterNode",
        after.id,
        before={name: old[name] for name in changed_names},
        after={name: new[name] for name in changed_names},
    )
