"""DNS, IP networks and outbound HTTP."""
