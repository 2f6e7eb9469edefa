"""Validation of the names of components and nodes."""

from collections.abc import Sequence

from models.errors import InvalidInput, NotFound
from models.runtime.components import HOLDABLE_NAMES, HTTP
from models.validation_constraints import ValidationConstraint
from resolvers.cluster.process_requests import load_answering_processes
from resolvers.cluster.validation import is_named_node
from resolvers.context import Context

MAX_NAMES = 100
MAX_NODE_LENGTH = 255  # characters


def require_holdable_names(names: Sequence[str]) -> list[str]:
    """Return the names, each once.

    Raises InvalidInput if there are none or too many, or one can't be stopped.
    """
    if not 1 <= len(names) <= MAX_NAMES:
        raise InvalidInput(
            f"Name 1 to {MAX_NAMES} components.",
            constraint=ValidationConstraint.RANGE,
            path=["components"],
        )
    for index, name in enumerate(names):
        if name in HOLDABLE_NAMES:
            continue
        text = (
            "Only serverStop stops HTTP."
            if name == HTTP
            else "No component with this name can be stopped and started."
        )
        raise InvalidInput(
            text,
            constraint=ValidationConstraint.ENUM,
            path=["components"],
            index=index,
            allowed_values=sorted(HOLDABLE_NAMES),
        )
    return list(dict.fromkeys(names))


async def require_known_node_address(ctx: Context, name: str) -> str:
    """Return `host:port` of the node with this name, which can be a host that has only one node.

    Raises NotFound unless a server process runs on the node, and InvalidInput if the host has
    several nodes.
    """
    processes = await load_answering_processes(ctx.environment)
    nodes = {process.node for process in processes} | {ctx.environment.own_node.name}
    found = [node for node in nodes if is_named_node(node, [name])]
    if not found:
        raise NotFound(name[:MAX_NODE_LENGTH], path=["node"], noun="Node")
    if len(found) > 1:
        raise InvalidInput(
            f"The host {name} has several nodes: write one of {', '.join(sorted(found))}.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["node"],
            allowed_values=sorted(found),
        )
    return found[0]
