"""What both clients share: requests, retries, channels, credentials, streaming. No calls of its own."""
