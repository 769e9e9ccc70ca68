"""Writes `docs/settings.md` from the settings themselves: `python docs/make_settings.py`. A test compares the two."""

from __future__ import annotations

from pathlib import Path

from pydantic_core import PydanticUndefined

from store.settings import Settings

HEAD = """# Settings

Every setting is an environment variable, or a line in a file `.env` in the folder where the service starts. The
defaults are the embedded form: SQLite, a queue in files, one worker, all in one folder, bound to this machine. This
page is written by `docs/make_settings.py`.

| variable | default | meaning |
|---|---|---|
"""
DERIVED = {
    "data_dir": "`~/.local/share/billhook`",
    "database_url": "SQLite in the data folder",
    "storage_url": "`artifacts/` in the data folder",
    "recipes_dir": "the recipes shipped with Billhook",
}


def settings_page() -> str:
    rows = []
    for name, field in Settings.model_fields.items():
        default = DERIVED.get(name)
        if default is None:
            value = field.default
            if value is PydanticUndefined:
                raise ValueError(f"the default of {name} is computed: say in DERIVED what it is")
            if isinstance(value, tuple):
                value = ",".join(value) or None
            default = "unset" if value is None else f"`{value}`"
        rows.append(f"| `BILLHOOK_{name.upper()}` | {default} | {field.description} |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    (Path(__file__).parent / "settings.md").write_text(settings_page())
