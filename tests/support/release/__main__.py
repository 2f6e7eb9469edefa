"""Release a version, or build the distributions of a commit.

`make release` and `make dist` run this for the checkout in the current folder.
"""

import sys
from datetime import UTC, datetime
from pathlib import Path

import typer

from tests.support.release import release_steps
from tests.support.release.errors import ReleaseError

app = typer.Typer(add_completion=False)


@app.command("release")
def release(version: str, *, tag: bool = False) -> None:
    """Commit the texts of a new version, and build its distributions in dist/."""
    today = datetime.now(UTC).date()
    typer.echo(release_steps.release_version(Path.cwd(), version, today, with_tag=tag))


@app.command("dist")
def build() -> None:
    """Build the distributions of this commit in dist/, and check them."""
    typer.echo(release_steps.build_commit(Path.cwd()))


def main() -> None:
    """Run a command. Exits with status 1 and a sentence if the release can't be made."""
    try:
        app()
    except ReleaseError as problem:
        sys.exit(f"release: {problem}")


if __name__ == "__main__":
    main()
