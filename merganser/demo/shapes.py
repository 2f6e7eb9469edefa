"""All shapes a letter of the demo account can have, and which letters have them."""

from collections.abc import Callable
from dataclasses import dataclass

from merganser.demo import attached, bodies, formal
from merganser.demo.mime import Part
from merganser.demo.texts import Desk, Note

WORLD = "world"  # a letter in one of the other languages, each in its turn
_PEOPLE = ("family", "pond", "club", "team")
_MACHINES = ("shop", "travel", "bank", "alert", "forge")
_FRIENDS = ("family", "pond", "club", WORLD)
_LETTERS = ("newsletter", "newsletter", "newsletter", "spam", "shop")
_WORK = ("work",)

Build = Callable[[Desk, Note], Part]


def named(build: Callable[..., object]) -> str:
    """What is built, in words: the name of the function that does it."""
    return str(getattr(build, "__name__", "")).replace("_", "-")


@dataclass(frozen=True)
class Shape:
    """A way to build a letter, and the genres it suits. `weight` counts beyond the first two."""

    build: Build
    genres: tuple[str, ...]
    weight: int = 0

    @property
    def name(self) -> str:
        """What the shape is called."""
        return named(self.build)


SHAPES = (
    Shape(bodies.as_is, (*_PEOPLE, "cron", "list", "spam", WORLD), 9),
    Shape(bodies.quoted, (*_PEOPLE, WORLD), 8),
    Shape(bodies.in_base64, (WORLD, "spam"), 6),
    Shape(bodies.flowed, (*_PEOPLE, "list"), 4),
    Shape(bodies.uuencoded, ("cron", "list")),
    Shape(bodies.utf16, ("spam", WORLD)),
    Shape(bodies.utf7, ("club", "list")),
    Shape(bodies.html_only, ("spam", "alert", WORLD), 6),
    Shape(bodies.newsletter_only, _LETTERS, 3),
    Shape(bodies.markdown_only, ("team", "list")),
    Shape(bodies.uuencode_inline, ("list", "club")),
    Shape(bodies.empty, ("family", "spam")),
    Shape(bodies.clearsigned, ("list", "team")),
    Shape(bodies.alternative, (*_PEOPLE, *_MACHINES, WORLD), 12),
    Shape(bodies.alternative_letter, _LETTERS, 4),
    Shape(bodies.alternative_single, ("spam", "shop")),
    Shape(bodies.alternative_markdown, ("team", "forge")),
    Shape(bodies.alternative_enriched, ("club", "family")),
    Shape(bodies.alternative_amp, ("newsletter", "shop")),
    Shape(bodies.languages, (WORLD,)),
    Shape(bodies.related, ("family", "club", WORLD), 1),
    Shape(bodies.alternative_related, (*_FRIENDS, "newsletter"), 1),
    Shape(bodies.related_alternative, (*_FRIENDS, "travel")),
    Shape(bodies.related_letter, ("newsletter",), 3),
    Shape(bodies.related_many, ("family", "pond")),
    Shape(bodies.related_start, ("club", "bank")),
    Shape(bodies.related_location, ("club", "newsletter")),
    Shape(attached.handbook, ("pond", WORLD), 1),
    Shape(attached.photo, _FRIENDS, 1),
    Shape(attached.receipt, ("shop", "travel", "bank"), 4),
    Shape(attached.alternative_handbook, ("pond", WORLD)),
    Shape(attached.related_photo, ("family", "pond")),
    Shape(attached.four_levels, ("pond", WORLD)),
    Shape(attached.jpeg, _FRIENDS, 1),
    Shape(attached.zipped, ("team", "family")),
    Shape(attached.document, ("club", "pond", WORLD)),
    Shape(attached.open_document, ("club", WORLD)),
    Shape(attached.table, ("pond",)),
    Shape(attached.patch, ("team", "list"), 1),
    Shape(attached.log, ("team", "forge")),
    Shape(attached.card, ("club", "pond")),
    Shape(attached.sound, ("pond", "family")),
    Shape(attached.film, ("pond", "family")),
    Shape(attached.drawing, ("team", "club")),
    Shape(attached.web_page, ("bank", "spam")),
    Shape(attached.nameless, ("spam", "cron")),
    Shape(attached.nothing, ("team",)),
    Shape(attached.many, ("club", "shop")),
    Shape(attached.foreign_name, (WORLD,)),
    Shape(attached.long_name, ("de", "family")),
    Shape(attached.worded_name, ("de", "shop")),
    Shape(attached.two_texts, ("pond", "family")),
    Shape(attached.page_in_three, ("club", "team")),
    Shape(attached.single, ("list", WORLD)),
    Shape(attached.mixed_in_mixed, ("family", "travel")),
    Shape(attached.commented, ("list", "team")),
    Shape(attached.only_document, ("pond",)),
    Shape(attached.only_picture, ("family",)),
    Shape(attached.voice, ("family",)),
    Shape(attached.parallel, ("club",)),
    Shape(attached.two_forks, ("club", "family")),
    Shape(attached.winmail, ("work", "club")),
    Shape(attached.form, ("spam", WORLD)),
    Shape(attached.footer, ("list",), 4),
    Shape(formal.forward, (*_PEOPLE, WORLD), 1),
    Shape(formal.forward_file, _PEOPLE),
    Shape(formal.forward_nested, _PEOPLE),
    Shape(formal.forward_several, ("team", "club")),
    Shape(formal.forward_bare, ("team", "pond")),
    Shape(formal.digest, ("list",)),
    Shape(formal.digest_framed, ("list",)),
    Shape(formal.dsn_failed, ("bounce",)),
    Shape(formal.dsn_delayed, ("delay",)),
    Shape(formal.dsn_delivered, ("delivered",)),
    Shape(formal.mdn, ("read",)),
    Shape(formal.complaint, ("report",)),
    Shape(formal.dmarc, ("report",)),
    Shape(formal.tls_report, ("report",)),
    Shape(formal.signed_pgp, ("list", "team", WORLD)),
    Shape(formal.signed_mixed, ("pond",)),
    Shape(formal.signed_smime, ("bank", "work")),
    Shape(formal.encrypted_pgp, ("team",)),
    Shape(formal.encrypted_smime, ("bank",)),
    Shape(formal.invite, _WORK, 2),
    Shape(formal.invite_alternative, _WORK, 1),
    Shape(formal.cancel, _WORK),
    Shape(formal.accept, _WORK),
    Shape(formal.event_only, _WORK),
    Shape(formal.event_file, ("club", "work")),
    Shape(formal.elsewhere, ("team", "pond")),
    Shape(formal.partial, ("club",)),
)
# What an answer in a conversation looks like.
ANSWERS = (
    *[bodies.as_is, bodies.quoted, bodies.flowed, bodies.alternative] * 4,
    *[bodies.html_only, bodies.alternative_markdown, attached.jpeg, attached.document] * 2,
    *[attached.photo, attached.handbook, attached.card, attached.commented, bodies.related],
    *[formal.signed_pgp, attached.single, formal.forward],
)
