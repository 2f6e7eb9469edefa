"""The folder of keys that forwarded messages are sealed with (ARC, RFC 8617)."""

from dataclasses import dataclass
from pathlib import Path

from mail.addresses.address_syntax import checked_domain
from mail.authentication import arc_seal
from mail.authentication.public_keys import is_domain
from merganser.errors import MISUSED, Trouble
from merganser.server.private_files import once
from models.errors import Refused


@dataclass(frozen=True, slots=True)
class Put:
    """An ARC key in the folder, with the TXT record of its public key."""

    path: Path
    name: str
    record: str
    new: bool


def put(folder: Path, domain: str, selector: str) -> Put:
    """Create the ARC key of a domain, or load the one that exists.

    Raises CommandError if the domain or the selector is invalid, or the file can't be used.
    """
    try:
        known = arc_seal.on_wire(checked_domain(domain, path="domain"))
    except Refused as problem:
        raise Trouble(f"{domain} is no domain", code=MISUSED) from problem
    if not is_domain(selector):
        raise Trouble(f"--selector: {selector} is no name of a key", code=MISUSED)
    name = f"{selector}{arc_seal.BETWEEN}{known}"
    path = folder / f"{name}.pem"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = not path.exists()
        if new:
            once(path, arc_seal.new_key())
        key = arc_seal.loaded(path)
    except OSError as problem:
        raise Trouble(f"cannot write {path}: {problem.strerror}") from problem
    except arc_seal.Unusable as problem:
        raise Trouble(str(problem)) from problem
    return Put(path, name, arc_seal.record(key), new)


def names(folder: Path) -> list[str]:
    """Check all ARC keys of the folder and return their DNS names.

    Raises CommandError if a key can't be used.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".pem")
        for path in paths:
            arc_seal.loaded(path)
    except OSError as problem:
        raise Trouble(f"cannot read {folder}: {problem.strerror}") from problem
    except arc_seal.Unusable as problem:
        raise Trouble(str(problem)) from problem
    return [path.stem for path in paths]
