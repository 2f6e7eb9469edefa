"""Implementation of `merganser check`."""

import typer

from mail.consistency import check_consistency
from mail.maintenance import restore_mark
from merganser.commands.environment_run import run_in_environment
from merganser.commands.progress_bar import create_progress_bar
from merganser.commands.terminal_output import print_json
from merganser.server.store.store_use import use_database_exclusively
from merganser.settings.settings import Settings
from models.runtime.environment import Environment


def check_store(repair: bool, quick: bool, restored: bool) -> None:
    """Check the store and print the report. The exit code is 1 if a difference is left.

    `repair` repairs the differences. `restored` first begins a new incarnation. Both require that
    no other process uses the database.
    """

    async def run_check(environment: Environment, _settings: Settings) -> dict[str, object]:
        if restored:
            await restore_mark.begin_incarnation_after_consistent_restore(environment)
        with create_progress_bar() as bar:
            task = bar.add_task("Checking", total=None)

            def report_progress(subject: str, done_count: int, total: int | None) -> None:
                bar.update(task, description=subject, completed=done_count, total=total)

            report = await check_consistency(
                environment, repair=repair, reads_blobs=not quick, progress=report_progress
            )
        return report.to_json()

    async def run_check_exclusively(
        environment: Environment, settings: Settings
    ) -> dict[str, object]:
        async with use_database_exclusively(environment, settings, "repair"):
            return await run_check(environment, settings)

    report = run_in_environment(run_check_exclusively if repair or restored else run_check)
    print_json(report)
    if not report["whole"]:
        raise typer.Exit(1)
