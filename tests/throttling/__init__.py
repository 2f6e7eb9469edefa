"""Tests of bans of networks and of delays after failures."""
