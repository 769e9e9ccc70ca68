"""What goes in and out as JSON. `api/openapi.py` describes the bodies that the routes read themselves."""
