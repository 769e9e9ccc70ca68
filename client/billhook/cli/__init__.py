"""The command `billhook`."""
