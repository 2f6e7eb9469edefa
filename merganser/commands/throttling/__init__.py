"""Commands about bans of networks."""
