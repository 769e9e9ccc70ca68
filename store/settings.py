"""Every setting of the service: an environment variable `BILLHOOK_<NAME>`, or a line in `.env`.

The defaults are the embedded form: everything under one data folder, bound to this machine. Production differs by
settings alone.
"""

from __future__ import annotations

import re
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

_DEVICE = re.compile(r"cpu|cuda:(0|[1-9][0-9]{0,2})", re.ASCII)
HOST = re.compile(r"(?:[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", re.ASCII)
QUEUE_PREFIX = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}", re.ASCII)
BROKERS = ("filesystem", "redis", "rediss", "amqp", "amqps")
GIB = 2**30


def _default_data_dir() -> Path:
    return Path("~/.local/share/billhook").expanduser()


def _default_recipes_dir() -> Path:
    return Path(__file__).resolve().parent.parent / "recipes"


class Settings(BaseSettings):
    """The service's settings. Raises pydantic's `ValidationError` naming the variable that is wrong."""

    model_config = SettingsConfigDict(env_prefix="BILLHOOK_", env_file=".env", extra="ignore", frozen=True)

    # where things are kept
    data_dir: Path = Field(
        default_factory=_default_data_dir, description="folder of the database, artifacts, queue, logs and key"
    )
    database_url: str = Field(
        default_factory=lambda data: f"sqlite:///{data['data_dir']}/billhook.db",
        description="SQLAlchemy URL, sqlite:/// or postgresql+psycopg://; default: SQLite in the data folder",
    )
    database_pool_size: int = Field(10, ge=1, le=1_000, description="connections that one process keeps open at most")
    broker_url: str = Field(
        "filesystem://",
        description="broker: filesystem:// (queue/ in the data folder), filesystem:///folder (one that workers with "
        "separate data folders share), redis:// or rediss:// (Redis 6.2 and up; the number of the database is the "
        "path), amqp:// or amqps:// (RabbitMQ)",
    )
    broker_ca_file: Path | None = Field(
        None,
        description="PEM file of the authorities that the broker's certificate (rediss://, amqps://) is trusted by; "
        "unset = the system's",
    )
    queue_prefix: str = Field(
        "billhook",
        description="what the names of the queues begin with; installations that share a broker need different ones",
    )
    storage_url: str = Field(
        default_factory=lambda data: f"file://{data['data_dir']}/artifacts",
        description="artifacts: file:///folder, s3://bucket/prefix (credentials and endpoint from the usual AWS_ "
        "variables; docs/storage.md)",
    )
    recipes_dir: Path = Field(
        default_factory=_default_recipes_dir, description="folder of the ready-made recipes, one YAML file each"
    )

    # the server
    host: str = Field("127.0.0.1", description="address to bind to")
    port: int = Field(8470, ge=0, le=65_535, description="port to bind to; 0 = any free one")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least severe lines to log")
    max_upload_bytes: int = Field(4 * GIB, ge=1, description="largest model or dataset taken")
    max_json_bytes: int = Field(2**20, ge=1_024, description="largest JSON body taken")
    min_free_bytes: int = Field(GIB // 2, ge=0, description="free space that an upload must leave on the disk")
    upload_idle_seconds: float = Field(
        60,
        gt=0,
        description="an upload, or a dataset's source, that sends nothing for so long is given up, and a JSON body "
        "that is not there by then",
    )
    long_poll_seconds: float = Field(60, ge=0, le=600, description="the longest ?wait= that is honoured")
    key_seconds: float = Field(
        5, ge=0, le=60,
        description="how long a key that was good is not asked about again: one that was revoked elsewhere opens "
        "nothing after that, and its streams end",
    )  # fmt: skip
    watch_seconds: float = Field(
        0.2, gt=0, le=10, description="how often the database is looked at for all requests that wait and all streams"
    )
    keep_alive_seconds: float = Field(
        15, gt=0, le=15, description="a stream of events that has nothing to say for so long says that it is there"
    )

    # where datasets may be fetched from; nothing is, as long as these are empty
    dataset_roots: Annotated[tuple[Path, ...], NoDecode] = Field(
        (),
        description="folders of the worker's machine that file:// datasets may lie in, comma-separated; "
        "every key may read what is below",
    )
    dataset_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="hosts that https:// datasets may come from, comma-separated: host, or host:port"
    )
    dataset_buckets: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="buckets that s3:// datasets may come from, comma-separated; credentials and endpoint from the "
        "usual AWS_ variables",
    )
    dataset_private_addresses: bool = Field(
        False, description="whether the hosts of https:// datasets may be at private, loopback and the like addresses"
    )
    dataset_ca_file: Path | None = Field(
        None, description="PEM file of authorities that https:// datasets are trusted by, beside the system's"
    )
    fetch_seconds_limit: int = Field(3_600, ge=1, description="longest fetch of a dataset that is given by its URI")

    # the queue
    devices: Annotated[tuple[str, ...], NoDecode] = Field(
        ("cpu",), description="devices that this installation has workers for, comma-separated: cpu, cuda:0, cuda:1, …"
    )
    lease_seconds: float = Field(30, ge=1, le=600, description="a worker that is silent for so long loses its job")
    heartbeat_seconds: float = Field(5, gt=0, description="how often a worker extends its lease")
    reaper_seconds: float = Field(5, gt=0, le=30, description="how often expired leases are looked for")
    relay_seconds: float = Field(0.2, gt=0, le=30, description="how often the outbox is looked at")

    # limits on the child process that does the work
    run_seconds_limit: int = Field(
        86_400, ge=1, description="longest run of a job, summed over attempts; time in the queue does not count"
    )
    inspect_seconds_limit: int = Field(
        1_800, ge=1, description="longest check of a model or dataset; images that are streamed are decoded in it"
    )
    dry_run_seconds_limit: int = Field(
        300, ge=1, description="longest dry run of a job (`POST /v1/jobs?dry_run=true`), which trains nothing"
    )
    memory_limit_bytes: int = Field(16 * GIB, ge=2**28, description="resident memory of a child and its descendants")
    dataset_memory_bytes: int | None = Field(
        None,
        ge=0,
        description="how much of a child's memory the images of a dataset may take; what takes more is stored in its "
        "work folder and streamed. Unset = half of BILLHOOK_MEMORY_LIMIT_BYTES",
    )
    disk_limit_bytes: int = Field(20 * GIB, ge=2**20, description="bytes that a child may leave in its work folder")
    open_files_limit: int = Field(1_024, ge=64, description="open files of a child")
    cancel_grace_seconds: float = Field(10, ge=0, description="from asking a child to stop until it is killed")
    threads: int | None = Field(None, ge=1, description="torch threads of a child; unset = all cores")

    # the key that the command line uses; the embedded server makes one in the data folder
    api_key: SecretStr | None = Field(
        None,
        description="the key that `billhook-server` registers instead of making one, owner local, all scopes; the one "
        "before it is revoked. Servers on one database need the same",
    )

    @field_validator("data_dir", "recipes_dir", mode="after")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @field_validator("broker_url", mode="after")
    @classmethod
    def _known_broker(cls, value: str) -> str:
        parts = urlsplit(value)  # the message names no part of the URL: it may hold a password
        if parts.scheme not in BROKERS or not value.startswith(f"{parts.scheme}://"):
            raise ValueError(f"begins with one of {', '.join(f'{scheme}://' for scheme in BROKERS)}")
        if "ssl_" in parts.query:  # drivers differ in what they make of it, down to no check at all
            raise ValueError("says nothing of TLS but its scheme; a private authority is BILLHOOK_BROKER_CA_FILE")
        if parts.scheme == "filesystem":
            folder = Path(unquote(parts.path))
            if parts.netloc or parts.query or parts.fragment or ".." in folder.parts or parts.path == "/":
                raise ValueError("is filesystem:// or names a folder by its absolute path: filesystem:///srv/queue")
        return value

    @field_validator("queue_prefix", mode="after")
    @classmethod
    def _plain_prefix(cls, value: str) -> str:
        if not QUEUE_PREFIX.fullmatch(value):
            raise ValueError("is 1 to 64 letters, digits, dots, hyphens and underscores, not beginning with a dot")
        return value

    @field_validator("dataset_roots", mode="after")
    @classmethod
    def _absolute_roots(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        if odd := [str(root) for root in value if not root.is_absolute() or ".." in root.parts]:
            raise ValueError(f"names folders by absolute paths, not {', '.join(odd)}")
        return value

    @field_validator("dataset_hosts", mode="after")
    @classmethod
    def _known_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if odd := [host for host in value if not HOST.fullmatch(host.lower())]:
            raise ValueError(f"names hosts as data.example.com or data.example.com:8443, not {', '.join(odd)}")
        return tuple(host.lower() for host in value)

    @field_validator("dataset_buckets", mode="after")
    @classmethod
    def _known_buckets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if odd := [bucket for bucket in value if not BUCKET.fullmatch(bucket)]:
            raise ValueError(f"names buckets alone, without s3:// or a key, not {', '.join(odd)}")
        return value

    @field_validator("devices", "dataset_roots", "dataset_hosts", "dataset_buckets", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("devices", mode="after")
    @classmethod
    def _known_devices(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or len(set(value)) != len(value) or not all(_DEVICE.fullmatch(device) for device in value):
            raise ValueError(f"names devices as cpu or cuda:N, at least one, each once, not {','.join(value)!r}")
        return value

    @model_validator(mode="after")
    def _heartbeat_within_lease(self) -> Settings:
        if self.heartbeat_seconds * 2 > self.lease_seconds:
            raise ValueError("heartbeat_seconds must be at most half of lease_seconds, or one late beat loses the job")
        return self

    @model_validator(mode="after")
    def _images_within_memory(self) -> Settings:
        if self.dataset_memory_bytes is not None and self.dataset_memory_bytes > self.memory_limit_bytes:
            raise ValueError("dataset_memory_bytes must be at most memory_limit_bytes, of which it is a part")
        return self

    @property
    def uploads_dir(self) -> Path:
        """Where uploads lie until their hash is known. On the disk of the artifacts, in the embedded form."""
        return self.data_dir / "uploads"

    @property
    def queue_dir(self) -> Path | None:
        """The folder of the queue; None where the broker is a server."""
        parts = urlsplit(self.broker_url)
        if parts.scheme != "filesystem":
            return None
        return Path(unquote(parts.path)) if parts.path else self.data_dir / "queue"

    @property
    def broker_tls(self) -> dict[str, Any] | None:
        """How kombu is to check the broker's certificate, and the name in it; None without TLS. By itself it would take
        any for `rediss://`."""
        parts = urlsplit(self.broker_url)
        authorities = self.broker_ca_file and str(self.broker_ca_file)
        match parts.scheme:
            case "rediss":
                return {"ssl_cert_reqs": "required", "ssl_check_hostname": True, "ssl_ca_certs": authorities}
            case "amqps":
                return {"cert_reqs": ssl.CERT_REQUIRED, "ca_certs": authorities, "server_hostname": parts.hostname}
        return None
