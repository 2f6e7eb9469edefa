"""The software bill of materials of a release: CycloneDX 1.6 in JSON, from requirements.lock.

It has the packages that the server and its extras need, with the locked versions and the SHA-256
of each of their files. Packages that only another platform needs are left out.
"""

import json
import platform
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.release.errors import ReleaseError

DEVELOPMENT_EXTRA = "dev"
LOCKED_VERSION = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^\]]*\])?==([^\s;\\]+)", re.MULTILINE)
HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class LockedPackage:
    """A package of requirements.lock: its version, and the SHA-256 of each of its files."""

    name: str
    version: str
    hashes: tuple[str, ...]

    @property
    def purl(self) -> str:
        """The package URL, which names it in the bill."""
        return f"pkg:pypi/{self.name}@{self.version}"


def read_locked_packages(lock: str) -> dict[str, LockedPackage]:
    """Return the packages of requirements.lock by their normalized names.

    If a package has several versions, the one that is installed here counts.
    """
    starts = list(LOCKED_VERSION.finditer(lock))
    ends = [*(start.start() for start in starts[1:]), len(lock)]
    packages: dict[str, LockedPackage] = {}
    for start, end in zip(starts, ends, strict=False):
        name = str(canonicalize_name(start[1]))
        hashes = tuple(sorted(HASH.findall(lock[start.end() : end])))
        if name not in packages or _installed_version_or_none(name) == start[2]:
            packages[name] = LockedPackage(name, start[2], hashes)
    return packages


def required_names(root: str, extras: Iterable[str]) -> dict[str, list[str]]:
    """Return the names that each required package needs itself, from the installed packages.

    `root` is a key too. Raises ReleaseError if a package isn't installed.
    """
    needs: dict[str, list[str]] = {}
    visited: set[tuple[str, str]] = set()
    waiting = [(root, extra) for extra in ("", *extras)]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in visited:
            continue
        visited.add((name, extra))
        needed = needs.setdefault(name, [])
        for requirement in _requirements(name, extra):
            required = str(canonicalize_name(requirement.name))
            if required not in (name, *needed):
                needed.append(required)
            waiting += [(required, wanted) for wanted in ("", *requirement.extras)]
    return {name: sorted(needed) for name, needed in sorted(needs.items())}


def _requirements(name: str, extra: str) -> list[Requirement]:
    """The requirements of a package here, with one of its extras or with none (an empty text)."""
    requirements = map(Requirement, _installed(name).requires or ())
    return [
        requirement
        for requirement in requirements
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra})
    ]


def _installed_version_or_none(name: str) -> str | None:
    try:
        return distribution(name).version
    except PackageNotFoundError:
        return None


def _installed(name: str) -> Distribution:
    try:
        return distribution(name)
    except PackageNotFoundError as problem:
        raise ReleaseError(
            f"The package {name} isn't installed: run `make check` first."
        ) from problem


def runtime_extras(project: Mapping[str, Any]) -> list[str]:
    """The extras of pyproject.toml for operators, without that for development."""
    return [name for name in project["optional-dependencies"] if name != DEVELOPMENT_EXTRA]


def create_bill_of_materials(
    project: Mapping[str, Any], lock: str, needs: Mapping[str, list[str]], epoch: int
) -> str:
    """Return the bill as JSON. The same input has the same text. Raises ReleaseError.

    `project` is the table of pyproject.toml, and `needs` comes from `required_names`.
    """
    locked = read_locked_packages(lock)
    name, version = str(project["name"]), str(project["version"])
    missing = sorted(needs.keys() - locked.keys() - {name})
    if missing:
        raise ReleaseError(f"requirements.lock lacks {', '.join(missing)}: run `make lock`.")
    refs = {required: locked[required].purl for required in needs if required != name}
    refs[name] = f"pkg:pypi/{name}@{version}"
    bill: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).isoformat().replace("+00:00", "Z"),
            "component": {
                "type": "application",
                "bom-ref": refs[name],
                "name": name,
                "version": version,
                "licenses": [{"license": {"id": str(project["license"])}}],
                "purl": refs[name],
            },
            "properties": [
                {"name": "merganser:python", "value": platform.python_version()},
                {"name": "merganser:platform", "value": platform.system().lower()},
            ],
        },
        "components": [
            _component(locked[required]) for required in sorted(refs) if required != name
        ],
        "dependencies": [
            {"ref": refs[owner], "dependsOn": [refs[required] for required in needed]}
            for owner, needed in sorted(needs.items())
        ],
    }
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(bill, sort_keys=True))
    return json.dumps({**bill, "serialNumber": f"urn:uuid:{serial}"}, indent=2) + "\n"


def require_valid_bill(bill: str) -> None:
    """Raise ReleaseError unless the bill conforms to the schema of CycloneDX 1.6."""
    # slow to import, and only the tests of a release need it
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    if problem := JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill):
        raise ReleaseError(f"The bill of materials is invalid: {problem.data.message}.")


def _component(package: LockedPackage) -> dict[str, Any]:
    component: dict[str, Any] = {
        "type": "library",
        "bom-ref": package.purl,
        "name": package.name,
        "version": package.version,
        "hashes": [{"alg": "SHA-256", "content": content} for content in package.hashes],
        "purl": package.purl,
    }
    metadata = _installed(package.name).metadata
    if "License-Expression" not in metadata:
        return component
    return {**component, "licenses": [{"expression": metadata["License-Expression"]}]}
