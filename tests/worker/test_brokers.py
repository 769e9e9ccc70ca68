"""Redis and RabbitMQ, the real ones: what becomes of jobs when they are away, slow, or shared."""

from __future__ import annotations

import ssl
import struct
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import redis
import trustme

from store.settings import Settings
from tests.proxy import Proxy
from tests.servers import RABBITMQ, REDIS, address_of, need
from tests.worker.brokers import Broker, proxied
from tests.worker.conftest import StartWorker
from tests.worker.house import House, child_of, epoch_reached, over, wait_for
from worker import app as worker_app
from worker.app import Ringer, make_app, queue_named
from worker.redis_transport import expired


@pytest.fixture(params=["redis", "rabbitmq"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Broker]:
    with proxied(need(REDIS if request.param == "redis" else RABBITMQ), tmp_path) as broker:
        yield broker


@pytest.fixture
def settings(settings: Settings, broker: Broker) -> Settings:
    """Those of the workers, whose messages go through the proxy."""
    return settings.model_copy(update={"broker_url": broker.url, "queue_prefix": broker.prefix})


def log_of(tmp_path: Path, number: int = 1) -> str:
    return (tmp_path / f"worker{number}.log").read_text()


def succeeded_once(house: House, job_id: str) -> None:
    assert house.read(job_id).state == "succeeded", house.read(job_id).error
    assert [attempt.outcome for attempt in house.attempts(job_id)] == ["succeeded"]
    house.assert_no_gaps(job_id)


def test_a_job_goes_on_while_the_broker_is_away_and_the_worker_consumes_again(
    house: House, broker: Broker, start_worker: StartWorker, tmp_path: Path
) -> None:
    running = house.job(do="train", epochs=12, seconds=0.3)
    start_worker("cpu")
    epoch_reached(house, running, 1)
    broker.proxy.cut()
    waiting = house.job(do="train", epochs=1)
    wait_for(lambda: over(house, running))
    succeeded_once(house, running)
    time.sleep(1)
    assert house.read(waiting).state == "queued"
    broker.proxy.restore()
    wait_for(lambda: over(house, waiting), 60)
    succeeded_once(house, waiting)
    after = house.job(do="train", epochs=1)
    wait_for(lambda: over(house, after))
    succeeded_once(house, after)
    assert log_of(tmp_path).count("relay failed") == 1, "once for as long as it lasts"
    assert log_of(tmp_path).count("Cannot connect") <= 1


def test_a_connection_that_breaks_costs_nothing(house: House, broker: Broker, start_worker: StartWorker) -> None:
    jobs = [house.job(do="train", epochs=6, seconds=0.2) for _ in range(3)]
    start_worker("cpu")
    for job_id in jobs:
        epoch_reached(house, job_id, 1)
        broker.proxy.drop()
        wait_for(lambda job_id=job_id: over(house, job_id), 30)  # type: ignore[misc]
    for job_id in jobs:
        succeeded_once(house, job_id)


def test_a_broker_that_is_away_at_the_start_is_waited_for(
    house: House, broker: Broker, start_worker: StartWorker, tmp_path: Path
) -> None:
    broker.proxy.cut()
    job_id = house.job(do="train", epochs=1)
    worker = start_worker("cpu")
    wait_for(lambda: "Cannot connect" in log_of(tmp_path))
    time.sleep(7)  # three tries
    assert worker.poll() is None
    assert log_of(tmp_path).count("Cannot connect") == 1
    assert log_of(tmp_path).count("relay failed") == 1
    assert "guest:guest" not in log_of(tmp_path)
    broker.proxy.restore()
    wait_for(lambda: over(house, job_id), 60)
    succeeded_once(house, job_id)
    assert "relay works again" in log_of(tmp_path)


def test_a_server_that_says_nothing_is_given_up(
    settings: Settings, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lost route: connected, and no answer ever. The relay must not hang on it, and goes on when it is back."""
    monkeypatch.setattr(worker_app, "ANSWER_SECONDS", 1)
    app = make_app(settings)
    ring = Ringer(app, settings)
    ring("run", "job_1", "cpu")
    broker.proxy.stop()
    began = time.monotonic()
    with pytest.raises(Exception, match=r"(?i)tim(e|ed) ?out"):
        ring("run", "job_2", "cpu")
    assert time.monotonic() - began < 10
    broker.proxy.go_on()
    broker.proxy.drop()
    before = broker.waiting()
    wait_for(lambda: _rings(ring), 20)
    assert broker.waiting() > before
    app.close()


def _rings(ring: Ringer) -> bool:
    try:
        ring("run", "job_3", "cpu")
    except Exception:
        return False
    return True


def test_the_same_message_twice_makes_one_attempt(
    house: House, broker: Broker, start_worker: StartWorker, tmp_path: Path
) -> None:
    """What Redis does after an hour, and RabbitMQ after a connection is lost: a second worker is told of a job that
    runs."""
    job_id = house.job(do="train", epochs=10, seconds=0.3)
    start_worker("cpu")
    child_of(house, job_id, 1)
    start_worker("cpu")
    if broker.in_redis:
        restore_unacknowledged(broker)
    else:
        Ringer(make_app(broker.settings()), broker.settings())("run", job_id, "cpu")
    wait_for(lambda: "nothing to do" in log_of(tmp_path, 1) + log_of(tmp_path, 2))
    wait_for(lambda: over(house, job_id))
    succeeded_once(house, job_id)
    wait_for(lambda: broker.waiting() == 0)
    assert unacknowledged(broker) == 0


def restore_unacknowledged(broker: Broker) -> None:
    """As any worker does every now and then, two hours later."""
    client = redis.Redis.from_url(broker.direct_url)
    index = f"{broker.prefix}.unacked_index"
    wait_for(lambda: client.zcard(index) == 1)
    for tag in client.zrange(index, 0, -1):
        client.zadd(index, {tag: time.time() - 7_200})
    with make_app(broker.settings()).connection_for_read() as connection:
        connection.default_channel.qos.restore_visible(interval=1)
    client.close()


def unacknowledged(broker: Broker) -> int:
    if not broker.in_redis:
        return 0
    client = redis.Redis.from_url(broker.direct_url)
    count = int(client.zcard(f"{broker.prefix}.unacked_index"))
    client.close()
    return count


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_channel_that_rabbitmq_closes_costs_nothing(
    house: House, broker: Broker, start_worker: StartWorker, tmp_path: Path
) -> None:
    """As those before 3.12 do half an hour into a job: they do not know the queue's own limit."""
    job_id = house.job(do="train", epochs=10, seconds=0.3)
    start_worker("cpu")
    epoch_reached(house, job_id, 1)
    text = b"PRECONDITION_FAILED - delivery acknowledgement on channel 1 timed out"
    close = struct.pack(">HHHB", 20, 40, 406, len(text)) + text + struct.pack(">HH", 0, 0)
    broker.proxy.say(struct.pack(">BHL", 1, 1, len(close)) + close + b"\xce")
    wait_for(lambda: "Connection to broker lost" in log_of(tmp_path))
    wait_for(lambda: over(house, job_id))
    succeeded_once(house, job_id)
    after = house.job(do="train", epochs=1)
    wait_for(lambda: over(house, after), 30)
    succeeded_once(house, after)


@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_worker_that_is_busy_for_long_answers_the_heartbeats_of_the_broker(
    house: House, broker: Broker, start_worker: StartWorker, tmp_path: Path
) -> None:
    """RabbitMQ closes a connection that it has not heard of for two of them."""
    job_id = house.job(do="train", epochs=40, seconds=0.3)
    start_worker("cpu", broker_url=f"{broker.url}?heartbeat=2")
    wait_for(lambda: over(house, job_id), 60)
    succeeded_once(house, job_id)
    wait_for(lambda: broker.waiting() == 0)
    assert "Connection to broker lost" not in log_of(tmp_path)
    assert "Couldn't ack" not in log_of(tmp_path)


def test_two_installations_share_a_broker(house: House, broker: Broker, start_worker: StartWorker) -> None:
    """Neither takes what is for the other."""
    other = Broker(broker.direct_url, broker.proxy, broker.data_dir)
    try:
        Ringer(make_app(other.settings()), other.settings())("run", "job_of_another", "cpu")
        job_id = house.job(do="train", epochs=1)
        start_worker("cpu")
        wait_for(lambda: over(house, job_id))
        succeeded_once(house, job_id)
        assert other.waiting() == 1
    finally:
        other.remove()


def test_a_queue_that_nobody_reads_does_not_grow(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_app, "EXPIRES_SECONDS", 1)
    app = make_app(broker.settings())
    ring = Ringer(app, broker.settings())
    for number in range(20):
        ring("run", f"job_{number}", "gpu")
    assert broker.waiting("gpu") == 20
    time.sleep(1.2)
    ring("run", "job_20", "gpu")
    wait_for(lambda: broker.waiting("gpu") == 1)
    app.close()


def test_what_is_past_its_time() -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)

    def message(seconds: float) -> bytes:
        return f'{{"headers": {{"expires": "{(now + timedelta(seconds=seconds)).isoformat()}"}}}}'.encode()

    assert expired([], now) == 0
    assert expired([message(1), message(-1), message(-2)], now) == 2
    assert expired([message(-3), message(1)], now) == 0, "one that is fresh keeps what came after it"
    assert expired([message(1), b"no JSON", b"{}", b'{"headers": {"expires": null}}', message(-1)], now) == 4
    assert expired([b'{"headers": {"expires": "2025-12-31T23:59:59"}}'], now) == 1, "UTC where it does not say"


@pytest.mark.parametrize("trusted", [True, False])
def test_a_broker_behind_tls(broker: Broker, authority: trustme.CA, tmp_path: Path, trusted: bool) -> None:
    """Its certificate is checked, and the name in it."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost" if trusted else "elsewhere.example.com").configure_cert(server)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    with Proxy(address_of(broker.direct_url), server) as proxy:
        scheme, _, rest = broker.url.partition("://")
        url = f"{scheme}s://{rest}".replace(f"127.0.0.1:{broker.proxy.port}", f"localhost:{proxy.port}")
        settings = broker.settings(broker_url=url, broker_ca_file=ca_file)
        app = make_app(settings)
        if not trusted:
            with pytest.raises(Exception, match=r"(?i)certificate verify failed"):
                Ringer(app, settings)("run", "job_1", "cpu")
            assert broker.waiting() == 0
            return
        Ringer(app, settings)("run", "job_1", "cpu")
        assert broker.waiting() == 1
        with app.connection_for_read() as connection:
            queue = connection.SimpleQueue(queue_named(settings, "cpu"))
            message = queue.get(timeout=5)
            message.ack()
            queue.close()
        assert message.payload[0] == ["job_1"]
        app.close()


def test_a_worker_behind_tls(
    house: House, broker: Broker, authority: trustme.CA, tmp_path: Path, start_worker: StartWorker
) -> None:
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    with Proxy(address_of(broker.direct_url), server) as proxy:
        scheme, _, rest = broker.url.partition("://")
        url = f"{scheme}s://{rest}".replace(f"127.0.0.1:{broker.proxy.port}", f"localhost:{proxy.port}")
        job_id = house.job(do="train", epochs=1)
        start_worker("cpu", broker_url=url, broker_ca_file=ca_file)
        wait_for(lambda: over(house, job_id))
        succeeded_once(house, job_id)
