"""The files of a job."""

from __future__ import annotations

from api.schemas.base import Out
from store.records import Artifact


class ArtifactOut(Out):
    name: str
    kind: str
    sha256: str
    bytes: int
    media_type: str

    @classmethod
    def of(cls, artifact: Artifact) -> ArtifactOut:
        return cls.model_validate({name: getattr(artifact, name) for name in cls.model_fields})


class ArtifactPage(Out):
    items: list[ArtifactOut]
    next_page_token: str | None
