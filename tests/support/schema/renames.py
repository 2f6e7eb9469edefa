"""Complete the list of old names: `python -m tests.support.schema.renames`.

It has the names that changed before the first release.

A name is a schema coordinate such as `Mutation.actAs(input:)`. The rows of the list that can't be
computed are written by hand: renames, and removed names with what to use instead.
"""

import csv
import io
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.schema import naming_rules
from tests.support.schema.printed_schema import SDL

REPOSITORY = Path(__file__).parents[3]
RENAMES_FILE = REPOSITORY / "docs" / "renames.csv"
OLD_NAMES_FILE = REPOSITORY / "tests" / "schema" / "names_before_1.0.txt"
REMOVED = "removed"
CURRENT_NAMES = frozenset(name for name, _ in naming_rules.iter_describable(SDL))
_COORDINATE = re.compile(r"(\w+)(?:\.(\w+)(?:\((\w+):\))?)?")


@dataclass(frozen=True, slots=True)
class Rename:
    """The new name of an old one, or `removed`, and what to use instead."""

    new: str
    use: str = ""


def read_renames() -> dict[str, Rename]:
    """Read the list of renames by old name."""
    with RENAMES_FILE.open(newline="", encoding="utf-8") as file:
        return {row["old"]: Rename(row["new"], row["use"]) for row in csv.DictReader(file)}


def read_vanished_names() -> list[str]:
    """Return the names of the schema before these changes that the current schema does not have."""
    old_names = OLD_NAMES_FILE.read_text(encoding="utf-8").split("\n")
    return [name for name in old_names if name and name not in CURRENT_NAMES]


def complete_renames(
    renames: Mapping[str, Rename], vanished_names: Collection[str]
) -> dict[str, Rename]:
    """Return the renames with a row for each vanished name whose new name can be computed.

    A member of a renamed type or field keeps its own name, or has that of the member of the new
    type. A member of a removed type is removed.
    """
    return dict(renames) | {
        name: rename
        for name in vanished_names
        if name not in renames and (rename := _computed_rename(renames, name)) is not None
    }


def _computed_rename(renames: Mapping[str, Rename], name: str) -> Rename | None:
    match = _COORDINATE.fullmatch(name)
    if match is None or match[2] is None:
        return None
    owner, own_name = name[: match.start(3) - 1 if match[3] else match.start(2) - 1], match[3]
    new_owner = renames.get(owner) or _computed_rename(renames, owner) or Rename(owner)
    if new_owner.new == REMOVED:
        return new_owner
    new_name = f"{new_owner.new}({own_name}:)" if own_name else f"{new_owner.new}.{match[2]}"
    rename = renames.get(new_name) or Rename(new_name)
    return rename if rename.new in CURRENT_NAMES or rename.new == REMOVED else None


def format_renames(renames: Mapping[str, Rename]) -> Iterator[str]:
    """Yield the lines of the list: settings first, then schema names in alphabetical order."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["old", "new", "use"])
    for old in sorted(renames, key=lambda name: (not _is_setting(name), name)):
        writer.writerow([old, renames[old].new, renames[old].use])
    yield from text.getvalue().splitlines()


def _is_setting(name: str) -> bool:
    return name.startswith("MERGANSER_") or name[0].islower()


if __name__ == "__main__":
    lines = format_renames(complete_renames(read_renames(), read_vanished_names()))
    RENAMES_FILE.write_text("\n".join([*lines, ""]), encoding="utf-8")
