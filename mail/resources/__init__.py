"""Bookings of resources by invitations (iTIP, RFC 5546; iMIP, RFC 6047)."""
