"""The texts of a release: version, changelog, released schema, and pages with the version."""

import re
import tomllib
from datetime import date
from pathlib import Path

from packaging.version import Version

from tests.support.release.errors import ReleaseError

PROJECT = "pyproject.toml"
CHANGELOG = "CHANGELOG.md"
SCHEMA = "schema.graphql"
RELEASED_SCHEMA = "tests/schema/released.graphql"
ACCEPTED_CHANGES = "tests/schema/accepted_changes.json"  # of the schema since the last release
UNRELEASED = "Unreleased"
VERSION = re.compile(r"[0-9]+\.[0-9]+\.[0-9]+")
VERSION_LINE = re.compile(r'^version = "[^"]*"$', re.MULTILINE)
WHEEL_NAME = re.compile(rf"merganser-{VERSION.pattern}-py3")
HEADING = re.compile(r"^## \[([^\]]+)\].*\n", re.MULTILINE)
ENTRY = re.compile(r"^- ", re.MULTILINE)


def read_version(root: Path) -> str:
    """Return the version of pyproject.toml, its only place."""
    return str(tomllib.loads((root / PROJECT).read_text())["project"]["version"])


def release_changelog(changelog: str, version: str, day: date) -> str:
    """Return the changelog with the heading of a version above the unreleased entries.

    The section Unreleased becomes empty. Raises ReleaseError if it is empty already, or if the
    version isn't newer than all released ones.
    """
    headings = list(HEADING.finditer(changelog))
    if not headings or headings[0][1] != UNRELEASED:
        raise ReleaseError(f"The first section of {CHANGELOG} must be `## [{UNRELEASED}]`.")
    for heading in headings[1:]:
        if Version(heading[1]) >= Version(version):
            raise ReleaseError(f"{CHANGELOG} has version {heading[1]}: release a newer one.")
    start = headings[0].end()
    end = headings[1].start() if len(headings) > 1 else len(changelog)
    if not ENTRY.search(changelog, start, end):
        raise ReleaseError(f"The section {UNRELEASED} of {CHANGELOG} has no entries.")
    return f"{changelog[:start]}\n## [{version}] - {day.isoformat()}\n{changelog[start:]}"


def released_schema(schema: str, version: str) -> str:
    """Return the schema with which later versions must be compatible."""
    return f"# merganser {version}\n{schema}"


def release_texts(root: Path, version: str, day: date) -> dict[str, str]:
    """Return the new texts of the files that a release changes, by path. Raises ReleaseError."""
    if not VERSION.fullmatch(version):
        raise ReleaseError(f"The version {version} must be like 1.2.3.")
    texts = {
        PROJECT: VERSION_LINE.sub(f'version = "{version}"', (root / PROJECT).read_text(), count=1),
        CHANGELOG: release_changelog((root / CHANGELOG).read_text(), version, day),
        RELEASED_SCHEMA: released_schema((root / SCHEMA).read_text(), version),
        ACCEPTED_CHANGES: "{}\n",
    }
    for page in (root / "docs").rglob("*.md"):
        text = page.read_text()
        if WHEEL_NAME.search(text):
            name = page.relative_to(root).as_posix()
            texts[name] = WHEEL_NAME.sub(f"merganser-{version}-py3", text)
    return texts
