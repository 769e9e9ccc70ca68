"""A real worker process whose child is `fake_child.py`. Arguments: its name, its queues."""

from __future__ import annotations

import sys
from pathlib import Path

from store.settings import Settings
from worker.context import make_context
from worker.logs import configure_worker_logs
from worker.service import serve

if __name__ == "__main__":
    settings = Settings()
    configure_worker_logs(settings.log_level, sys.argv[1])
    child = (sys.executable, str(Path(__file__).with_name("fake_child.py")))
    status = serve(make_context(settings, name=sys.argv[1], command=child), sys.argv[2:])
    assert "torch" not in sys.modules
    sys.exit(status)
