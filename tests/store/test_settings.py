"""Settings: every default makes sense together, and what is wrong is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from store.settings import Settings


def test_everything_lies_in_the_data_folder(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path)
    assert settings.database_url == f"sqlite:///{tmp_path}/billhook.db"
    assert settings.storage_url == f"file://{tmp_path}/artifacts"
    assert settings.uploads_dir == tmp_path / "uploads"
    assert settings.host == "127.0.0.1"
    assert (settings.recipes_dir / "filter_norm_half.yaml").exists()


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BILLHOOK_DATA_DIR", "relative")
    monkeypatch.setenv("BILLHOOK_DEVICES", "cpu, cuda:1")
    monkeypatch.setenv("BILLHOOK_API_KEY", "bh_secret")
    monkeypatch.setenv("BILLHOOK_DATASET_HOSTS", "Data.example.com, b.com:8443,[::1]:443")
    monkeypatch.setenv("BILLHOOK_DATASET_ROOTS", "/srv/sets,/mnt/sets")
    monkeypatch.setenv("BILLHOOK_DATASET_BUCKETS", "sets,other.sets")
    settings = Settings()
    assert settings.dataset_hosts == ("data.example.com", "b.com:8443", "[::1]:443")
    assert settings.dataset_roots == (Path("/srv/sets"), Path("/mnt/sets"))
    assert settings.dataset_buckets == ("sets", "other.sets")
    assert settings.data_dir == tmp_path / "relative"
    assert settings.database_url == f"sqlite:///{tmp_path}/relative/billhook.db"
    assert settings.devices == ("cpu", "cuda:1")
    assert "bh_secret" not in repr(settings)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"devices": "tpu"}, "devices"),
        ({"devices": "cuda:01"}, "devices"),
        ({"devices": "cpu,cpu"}, "devices"),
        ({"devices": ""}, "devices"),
        ({"lease_seconds": 6}, "heartbeat_seconds"),
        ({"port": 70_000}, "port"),
        ({"dataset_memory_bytes": 2**31, "memory_limit_bytes": 2**30}, "dataset_memory_bytes"),
        ({"dataset_roots": "/srv/sets,relative"}, "dataset_roots"),
        ({"dataset_roots": "/srv/../etc"}, "dataset_roots"),
        ({"dataset_hosts": "https://data.example.com"}, "dataset_hosts"),
        ({"dataset_hosts": "*.example.com"}, "dataset_hosts"),
        ({"dataset_buckets": "s3://sets"}, "dataset_buckets"),
        ({"dataset_buckets": "sets/folder"}, "dataset_buckets"),
        ({"broker_url": "http://127.0.0.1"}, "broker_url"),
        ({"broker_url": "redis:127.0.0.1"}, "broker_url"),
        ({"broker_url": "filesystem://relative/folder"}, "broker_url"),
        ({"broker_url": "filesystem:///srv/../etc"}, "broker_url"),
        ({"broker_url": "filesystem:///"}, "broker_url"),
        ({"broker_url": "rediss://host/0?ssl_cert_reqs=none"}, "broker_url"),
        ({"queue_prefix": ""}, "queue_prefix"),
        ({"queue_prefix": "a/b"}, "queue_prefix"),
    ],
)
def test_what_is_wrong_is_named(given: dict[str, object], named: str) -> None:
    with pytest.raises(ValidationError, match=named):
        Settings(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("url", "folder"),
    [
        ("filesystem://", "data/queue"),
        ("filesystem:///srv/queue", "/srv/queue"),
        ("filesystem:///srv/a%20queue/", "/srv/a queue"),
        ("redis://:secret@redis.example.com:6380/2", None),
        ("rediss://redis.example.com/0", None),
        ("amqps://billhook:secret@mq.example.com/vhost", None),
    ],
)
def test_the_folder_of_the_queue(tmp_path: Path, url: str, folder: str | None) -> None:
    settings = Settings(data_dir=tmp_path / "data", broker_url=url)
    assert settings.queue_dir == (None if folder is None else tmp_path / folder)


def test_a_password_in_a_wrong_url_is_not_told() -> None:
    with pytest.raises(ValidationError) as error:
        Settings(broker_url="amqp+tls://billhook:secret@mq.example.com")
    assert "secret" not in str(error.value.errors(include_input=False))


def test_every_setting_is_described() -> None:
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []
