"""Implementation of `merganser serve`."""

import uvloop

from merganser.errors import EXIT_USAGE, CommandError
from merganser.server import lifecycle
from merganser.server.observability import logs
from merganser.server.processes.process_supervisor import run_processes
from merganser.settings.settings import Settings, read_settings


def serve(demo: bool, demo_count: int, workers: int) -> None:
    """Run the server until it is stopped."""
    settings = read_settings()
    logs.configure_logging("WARNING" if demo else settings.log_level, settings.log_format)
    if workers > 1:
        if demo:
            raise CommandError(
                "Create the demo account first: run `merganser demo`.", exit_code=EXIT_USAGE
            )
        run_processes(settings, workers)
    elif demo:
        _serve_with_demo_account(settings, demo_count)
    else:
        uvloop.run(lifecycle.serve(settings))  # asyncio.run would leave uvloop unused


def _serve_with_demo_account(settings: Settings, message_count: int) -> None:
    # a server without --demo does not need the 2 MB of the demo messages in memory
    from merganser.commands.server import demo_server  # noqa: PLC0415

    demo_server.serve_with_demo_accounts(settings, message_count)
