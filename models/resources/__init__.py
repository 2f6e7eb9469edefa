"""Tables of rooms, things and groups that can be booked by mail."""
