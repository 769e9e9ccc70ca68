"""`python -m api.probe`: whether the server of this data folder answers. The health check of the container image."""

from __future__ import annotations

import sys
import urllib.error
import urllib.request

from store.settings import Settings

PROBE_SECONDS = 3.0
# straight to this machine, whatever proxy the environment names
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def answers(url: str, seconds: float = 1.0) -> bool:
    """Whether a server at `url` says within so many seconds that it is alive."""
    try:
        with _OPENER.open(f"{url}/healthz", timeout=seconds) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def main() -> int:
    """Exit status: 0 it answers, 1 it does not, or none runs. A server writes its address when it first answers."""
    address = Settings().data_dir / "address"
    url = address.read_text().strip() if address.exists() else None
    if url is None or not answers(url, PROBE_SECONDS):
        sys.stderr.write("no server answers here\n" if url is None else f"the server at {url} does not answer\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
