"""Without the optional packages the server starts: they are imported where they are used."""

import subprocess
import sys
from importlib.metadata import packages_distributions, requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.servers.merganser_server import ROOT

# Modules that need an optional package. Only functions import them.
MODULES_WITH_OPTIONAL_PACKAGES = {
    "merganser.server.observability.otlp_exporters",
    "models.events.bus.nats_bus",
    "models.events.bus.postgres_bus",
    "models.events.bus.redis_bus",
    "models.logs.postgres_store",
    "models.store.postgres.connection",
}
IMPORT_ALL_MODULES = """
import importlib, importlib.abc, pathlib, sys

blocked = set(sys.argv[1].split(","))

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
for layer in ("models", "mail", "resolvers", "graph", "merganser"):
    for path in sorted(pathlib.Path(layer).rglob("*.py")):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        if "migrations" in path.parts or path.stem == "__main__":
            continue  # they are run, not imported
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            print(name)
"""


def required_distributions() -> set[str]:
    """Return the names of all distributions that an installation without extras has."""
    found, waiting = set[tuple[str, str]](), {("merganser", "")}  # a distribution and an extra
    while waiting:
        name, extra = waiting.pop()
        found.add((name, extra))
        for requirement in map(Requirement, requires(name) or ()):
            if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
                required = canonicalize_name(requirement.name)
                waiting |= {(required, each) for each in ("", *requirement.extras)} - found
    return {name for name, _ in found}


def test_only_known_modules_need_optional_packages() -> None:
    required = required_distributions()
    blocked = sorted(
        package
        for package, distributions in packages_distributions().items()
        if required.isdisjoint(map(canonicalize_name, distributions))
    )
    assert {"asyncpg", "redis", "nats", "httpx", "pytest"} <= set(blocked)
    process = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL_MODULES, ",".join(blocked)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(process.stdout.split()) == MODULES_WITH_OPTIONAL_PACKAGES
