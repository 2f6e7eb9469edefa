"""What is believed of who sent a message: the words of the server that hands it over to us."""

from dataclasses import replace

from mail.delivery import Letter
from mail.messages import believed
from models.world import World


def verified(world: World, letter: Letter) -> Letter:
    """A letter that came from outside, with what our own mail server found out about it.

    For no other: whoever sends from here writes the header of the message.
    """
    options, facts = world.options, letter.facts
    domain = facts.from_[0].address.rpartition("@")[2] if facts.from_ else ""
    found = believed(facts.stamps, options.authserv_ids, options.authserv_hops, domain)
    return replace(letter, verification=found) if found else letter
