"""The HTTP API. Never imports torch."""
