"""The outbound queue: enqueue messages, lease due recipients, and record results."""
