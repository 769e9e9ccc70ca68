"""What the store refuses. One small tree; `api/errors.py` gives each its HTTP status."""

from __future__ import annotations

from core.errors import BillhookError


class StoreError(BillhookError):
    code = "store_error"


class NotFound(StoreError):
    """No such record, or not this owner's: the two are not told apart."""

    code = "not_found"


class IllegalTransition(StoreError):
    """A state may not follow another. `store.records.TRANSITIONS` says which may."""

    code = "illegal_transition"


class JobTerminal(StoreError):
    """The job is over; its state never changes again."""

    code = "job_terminal"


class JobHeld(StoreError):
    """An attempt holds the job: it is being tried already."""

    code = "job_running"


class LeaseLost(StoreError):
    """The attempt no longer holds its job: it expired and was given away, or the job is over. It must stop writing."""

    code = "lease_lost"


class InUse(StoreError):
    """A model or dataset that a job which is not over still needs."""

    code = "in_use"


class ArtifactMissing(StoreError):
    """The storage has no such object."""

    code = "artifact_missing"


class ArtifactCorrupt(StoreError):
    """What the storage gave back is not what its name, the sha256, says."""

    code = "artifact_corrupt"


class StorageUnavailable(StoreError):
    """The artifact storage cannot be reached or written."""

    code = "storage_unavailable"


class IdempotencyKeyReused(StoreError):
    """The same `Idempotency-Key` came with another request."""

    code = "idempotency_key_reused"


class IdempotencyKeyInFlight(StoreError):
    """Another request with the same `Idempotency-Key` is being answered just now."""

    code = "idempotency_key_in_flight"


class TooManyDryRuns(StoreError):
    """The owner waits for as many dry runs as one may."""

    code = "too_many_dry_runs"


class SchemaMismatch(StoreError):
    """The database's schema is that of an older or newer version of this code."""

    code = "schema_mismatch"


class MigrationBlocked(StoreError):
    """The schema could not be migrated: somebody else holds its tables, or migrates it. Nothing was changed."""

    code = "migration_blocked"
