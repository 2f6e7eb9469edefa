"""Whether an account elsewhere can be fetched: tried stage by stage, with nothing stored."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mail.connectors import folders
from mail.connectors.servers import Failure, Server, Stage
from mail.connectors.sessions import session
from mail.outward import Gate
from models.connectors import Protocol, Security
from resolvers import connectorforms
from resolvers.context import Context

STAGES = (Stage.RESOLVE, Stage.CONNECT, Stage.TLS, Stage.GREETING, Stage.LOGIN, Stage.LIST)
SHOWN = 1000  # folders


@dataclass(frozen=True, slots=True)
class Tried:
    """A stage, and what was wrong with it."""

    stage: Stage
    ok: bool
    said: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found, as far as it went."""

    stages: Sequence[Tried]
    capabilities: Sequence[str] = ()
    folders: Sequence[str] = ()
    failure: Failure | None = None


async def check(
    ctx: Context, given: Mapping[str, Any], secret: str, *, trust: Any = None
) -> Checked:
    """Connect, sign in and list; Invalid where a field cannot be."""
    options = ctx.world.options
    values = connectorforms.checked(given, {}, options)
    server = Server(
        values["protocol"],
        values["host"],
        values["port"],
        values["security"],
        values["mechanism"],
        values["username"],
        connectorforms.secret(secret),
        float(values["remote_timeout"]),
    )
    gate = replace(Gate(), private=options.connectors_private)
    try:
        async with session(server, gate, options.message_max, trust) as there:
            found = await there.do(there.remote.folders)
            known = sorted(there.remote.capabilities)
    except Failure as problem:
        return Checked(_until(server, problem), failure=problem)
    names = [folders.remote(each) for each in found[:SHOWN]]
    return Checked([Tried(stage, ok=True) for stage in _of(server)], known, names)


def _of(server: Server) -> list[Stage]:
    """The stages there are: TLS comes before the greeting, or not at all, and POP3 lists nothing."""
    left = {Stage.TLS} if server.security is Security.PLAIN else set[Stage]()
    if server.protocol is Protocol.POP3:
        left.add(Stage.LIST)
    return [stage for stage in STAGES if stage not in left]


def _until(server: Server, problem: Failure) -> list[Tried]:
    stages = _of(server)
    at = stages.index(problem.stage) if problem.stage in stages else len(stages) - 1
    passed = [Tried(stage, ok=True) for stage in stages[:at]]
    return [*passed, Tried(stages[at], ok=False, said=problem.message)]
