"""Records, event log, artifacts and outbox: what the API and the worker share. Imports neither, and no torch."""
