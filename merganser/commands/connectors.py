"""The commands `merganser connector …`."""
# ruff: noqa: PLC0415 - what a command needs is imported when it runs, so that --help is quick

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from merganser.errors import WRONG, Trouble

if TYPE_CHECKING:
    from merganser.commands.connector_operations import Named
    from merganser.settings.settings import Settings
    from models.runtime.environment import World
    from models.store.columns import Picked
    from resolvers.connectors.check import Checked

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Which = Annotated[str, typer.Argument(metavar="ID", help="Its id, or its name.")]

INTERRUPTED = 130
SHOWN = 20
STAGES = {
    "RESOLVE": "name",
    "CONNECT": "connection",
    "TLS": "TLS",
    "GREETING": "greeting",
    "LOGIN": "login",
    "LIST": "folders",
}


def list_connectors(
    user: Annotated[
        str | None, typer.Option("--user", "-u", help="Only of this user: name or address.")
    ] = None,
    failing: Annotated[
        bool | None,
        typer.Option("--failing/--working", help="Only whose last run failed, or did not."),
    ] = None,
    as_json: Json = False,
) -> None:
    """List connectors: the accounts elsewhere whose mail comes here.

    Example: merganser connector list --user ada

    Example: merganser connector list --failing --json
    """
    from merganser.commands import connector_operations as connectors
    from merganser.commands.environment_run import run
    from merganser.commands.terminal_tables import shown

    async def run_operation(environment: "World", _settings: "Settings") -> list[dict[str, Any]]:
        return await connectors.listed(environment, user, failing=failing)

    found = run(run_operation)
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
        return
    titles = ("id", "name", "user", "protocol", "host", "active", "last success", "error")
    shown(titles, [_line(each) for each in found])


def _line(found: dict[str, Any]) -> list[str]:
    success = (found["last_success_at"] or "never")[:16].replace("T", " ")
    active = "running" if found["running"] else "yes" if found["active"] else "no"
    where = f"{found['host']}:{found['port']}"
    words = (found["id"], found["name"], found["user"], found["protocol"], where)
    return [*(str(each or "") for each in words), active, success, found["error"] or ""]


def check(which: Which, as_json: Json = False) -> None:
    """Sign in with the stored password, and tell stage by stage what works. Nothing is fetched.

    Ends with 1 where a stage fails.

    Example: merganser connector check con_AZpSKEwoAAE
    """
    from merganser.commands import connector_operations as connectors
    from merganser.commands.environment_run import run

    async def run_operation(environment: "World", _settings: "Settings") -> "tuple[Named, Checked]":
        return await connectors.checked(environment, which)

    one, found = run(run_operation)
    if as_json:
        stages = [{"stage": each.stage, "ok": each.ok, "said": each.said} for each in found.stages]
        whole = {"id": one.id, "name": one.name, "ok": found.failure is None, "stages": stages,
                 "folders": found.folders, "capabilities": found.capabilities}  # fmt: skip
        typer.echo(json.dumps(whole, indent=2, ensure_ascii=False))
    else:
        _print_check(found)
    if found.failure is not None:
        raise typer.Exit(WRONG)


def _print_check(found: "Checked") -> None:
    from rich.text import Text

    from merganser.commands.terminal_tables import shown

    rows = [
        (
            Text("ok", "green") if each.ok else Text("failed", "bold red"),
            STAGES.get(each.stage, each.stage),
            each.said,
        )
        for each in found.stages
    ]
    shown(("", "stage", "said"), rows)
    if found.folders:
        more = len(found.folders) - SHOWN
        typer.echo(f"{len(found.folders)} folders:")
        for name in found.folders[:SHOWN]:
            typer.echo(f"  {name}")
        if more > 0:
            typer.echo(f"  and {more} more")
    if found.capabilities:
        typer.echo(f"The server offers {' '.join(found.capabilities)}")


def run_now(
    which: Annotated[list[str], typer.Argument(metavar="ID...", help="Their ids, or names.")],
    trial: Annotated[
        bool, typer.Option("--trial", help="Store nothing and delete nothing: only look.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Fetch what is new, also for connectors that are switched off, one after another.

    A server may be running: whoever takes a run first does it, and this command follows it. Ctrl-C
    ends it at its next safe point: what has come stays, and the next run goes on from there. Ends
    with 1 where a run failed.

    Example: merganser connector run con_AZpSKEwoAAE

    Example: merganser connector run work private --trial
    """
    from merganser.commands import connector_operations as connectors
    from merganser.commands.connector_progress import Bars
    from merganser.commands.environment_run import run

    bars = Bars(trial)
    ending = connectors.Ending(bars.stopping)

    async def run_operation(
        environment: "World", _settings: "Settings"
    ) -> "list[tuple[Named, Picked]]":
        named = {
            one.key: one for one in [await connectors.named(environment, each) for each in which]
        }
        order = connectors.Order(list(named.values()), trial, bars.began, ending)
        with bars:
            return await connectors.ran(environment, order)

    try:
        done = run(run_operation)
    except (KeyboardInterrupt, asyncio.CancelledError):
        text = "left at once: what has come stays, and the next run goes on from there"
        raise Trouble(text, code=INTERRUPTED) from None
    found = [connectors.summary(one, row) for one, row in done]
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        for each in found:
            _print_run(each)
    if ending.asked:
        raise typer.Exit(INTERRUPTED)
    if any(each["state"] != "SUCCEEDED" and not each["listening"] for each in found):
        raise typer.Exit(WRONG)


def _print_run(found: dict[str, Any]) -> None:
    from rich.filesize import decimal

    brought = "would be brought" if found["trial"] else "brought"
    came = (
        f"{found['imported']} messages {brought}, {found['skipped']} left out, "
        f"{found['deleted_remote']} deleted elsewhere; "
        f"{decimal(found['bytes'])} in {found['seconds']:.1f} s"
    )
    if found["state"] == "FAILED":
        at = f" at {found['stage']}" if found["stage"] else ""
        typer.echo(f"{found['name']}: failed{at}: {found['error']}", err=True)
    elif found["state"] == "CANCELLED":
        typer.echo(f"{found['name']}: ended before all had come", err=True)
    listens = "; the server listens for more" if found["listening"] else ""
    typer.echo(f"{found['name']}: {came}{listens}.")


def log(which: Which) -> None:
    """Print what happened in the last run, line by line; times are UTC.

    Example: merganser connector log con_AZpSKEwoAAE
    """
    from merganser.commands import connector_operations as connectors
    from merganser.commands.environment_run import run

    async def run_operation(
        environment: "World", _settings: "Settings"
    ) -> "tuple[Named, list[str] | None]":
        return await connectors.log_of(environment, which)

    one, lines = run(run_operation)
    if lines is None:
        raise Trouble(f"{one.name} has not run yet")
    for line in lines:
        typer.echo(line)


def connectors() -> typer.Typer:
    """Create the command group `connector`."""
    group = typer.Typer(help="List, check and run connectors.", no_args_is_help=True)
    group.command("list")(list_connectors)
    group.command("check")(check)
    group.command("run")(run_now)
    group.command("log")(log)
    return group
