"""Check the version, the changelog and the released schema of a release."""

import re
import tomllib
from pathlib import Path

from tests.support.release.errors import ReleaseError

VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
RELEASE_HEADING = re.compile(r"^## \[([^\]]+)\](?: - (\S+))?$", re.MULTILINE)
DATE = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}")


def read_version(root: Path) -> str:
    """Return the version of pyproject.toml, its only place. Raises ReleaseError for a wrong one."""
    version = str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
    if not VERSION.fullmatch(version):
        raise ReleaseError(f"The version {version} in pyproject.toml must be like 1.2.3.")
    return version


def require_changelog_section(changelog: str, version: str) -> None:
    """Raise ReleaseError unless the newest section with a version is this one, with a date."""
    headings = list(RELEASE_HEADING.finditer(changelog))
    sections = [heading for heading in headings if heading[1] != "Unreleased"]
    if not sections or sections[0][1] != version:
        raise ReleaseError(
            f"CHANGELOG.md must have the section `## [{version}] - YYYY-MM-DD` below Unreleased: "
            "move the entries there."
        )
    section = sections[0]
    if not DATE.fullmatch(section[2] or ""):
        raise ReleaseError(f"The section {version} of CHANGELOG.md needs a date: YYYY-MM-DD.")
    following = [heading.start() for heading in headings if heading.start() > section.start()]
    entries = changelog[section.end() : min(following, default=len(changelog))]
    if not re.search(r"^- ", entries, re.MULTILINE):
        raise ReleaseError(f"The section {version} of CHANGELOG.md has no entries.")


def require_released_schema(released: str, schema: str, version: str) -> None:
    """Raise ReleaseError unless the stored schema is the one of this version."""
    if released != f"# merganser {version}\n{schema}":
        raise ReleaseError(
            "tests/schema/released.graphql is not the schema of this version: run `make released` "
            "and commit it."
        )


def check_release_texts(root: Path) -> str:
    """Check changelog and schema of the version in pyproject.toml, and return the version."""
    version = read_version(root)
    require_changelog_section((root / "CHANGELOG.md").read_text(), version)
    released = (root / "tests" / "schema" / "released.graphql").read_text()
    require_released_schema(released, (root / "schema.graphql").read_text(), version)
    return version
