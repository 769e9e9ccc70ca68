"""What Celery says of a broker that is away: once, instead of at every try until it is back."""

from __future__ import annotations

import logging

CONSUMER = "celery.worker.consumer.consumer"
CONNECTION = "celery.worker.consumer.connection"


class OncePerOutage(logging.Filter):
    """Lets the first `Cannot connect` through, and then none until the consumer is `Connected` again."""

    def __init__(self) -> None:
        super().__init__()
        self._away = False

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        if record.name == CONNECTION and message.startswith("Connected to"):
            self._away = False
        elif record.name == CONSUMER and message.startswith("consumer: Cannot connect"):
            said, self._away = self._away, True
            return not said
        return True


def log_outages_once() -> None:
    """Once for each process."""
    once = OncePerOutage()
    for name in (CONSUMER, CONNECTION):
        logging.getLogger(name).addFilter(once)
