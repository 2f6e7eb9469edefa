"""The folder of keys that forwarded messages are sealed with (ARC, RFC 8617)."""

from dataclasses import dataclass
from pathlib import Path

from mail.addresses.address_syntax import normalize_and_validate_domain
from mail.authentication import arc_seal
from mail.authentication.public_keys import is_domain
from merganser.errors import EXIT_USAGE, CommandError
from merganser.server.private_files import create_private_file_if_missing
from models.errors import RequestError


@dataclass(frozen=True, slots=True)
class StoredArcKey:
    """An ARC key in the folder, with the TXT record of its public key."""

    path: Path
    dns_name: str
    dns_record: str
    is_new: bool


def create_or_load_arc_key(folder: Path, domain: str, selector: str) -> StoredArcKey:
    """Create the ARC key of a domain, or load the one that exists.

    Raises CommandError if the domain or the selector is invalid, or the file can't be used.
    """
    try:
        ascii_domain = arc_seal.ascii_name(normalize_and_validate_domain(domain, path="domain"))
    except RequestError as problem:
        raise CommandError(f"{domain} is not a domain name.", exit_code=EXIT_USAGE) from problem
    if not is_domain(selector):
        raise CommandError(f"--selector: {selector} is not a valid selector.", exit_code=EXIT_USAGE)
    dns_name = f"{selector}{arc_seal.DOMAINKEY_LABEL}{ascii_domain}"
    path = folder / f"{dns_name}.pem"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        is_new = not path.exists()
        if is_new:
            create_private_file_if_missing(path, arc_seal.new_key_pem())
        key = arc_seal.load_arc_private_key(path)
    except OSError as problem:
        raise CommandError(f"Cannot write {path}: {problem.strerror}.") from problem
    except arc_seal.UnusableSealKey as problem:
        raise CommandError(str(problem)) from problem
    return StoredArcKey(path, dns_name, arc_seal.arc_key_dns_record(key), is_new)


def check_arc_keys_and_return_dns_names(folder: Path) -> list[str]:
    """Check all ARC keys of the folder and return their DNS names.

    Raises CommandError if a key can't be used.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == ".pem")
        for path in paths:
            arc_seal.load_arc_private_key(path)
    except OSError as problem:
        raise CommandError(f"Cannot read {folder}: {problem.strerror}.") from problem
    except arc_seal.UnusableSealKey as problem:
        raise CommandError(str(problem)) from problem
    return [path.stem for path in paths]
