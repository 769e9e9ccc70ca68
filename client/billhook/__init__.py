"""Billhook's Python client: prune a convolutional network on a Billhook server.

    from pathlib import Path
    import billhook

    with billhook.Client() as client:
        result = client.prune(Path("model.onnx"), Path("photos/"), "prune-half", "pruned.onnx",
                              requirements={"accuracy_drop": "<= 0.01"})
        print(result.report.ratios)

`AsyncClient` has the same methods, to be awaited. Every error is a `BillhookError`.
"""

from billhook.clients import AsyncClient, Client
from billhook.dry_run_results import DryRun, DryRunReport, Estimate, Foreseen, LayerCut, NetworkSize, Spending, StepCut
from billhook.errors import (
    ApiError,
    BillhookError,
    ChecksumMismatch,
    ConnectionFailed,
    Fault,
    InputInvalid,
    JobCancelled,
    JobFailed,
    RequirementsMissed,
    ServerNotFound,
    Timeout,
    UploadRefused,
)
from billhook.keys import Key, NewKey
from billhook.operations.prune import Progress
from billhook.results import (
    Artifact,
    Attempt,
    Dataset,
    Download,
    Event,
    Graph,
    GraphBlock,
    GraphBranch,
    GraphFrozen,
    GraphGroup,
    GraphLayer,
    Job,
    Model,
    Problem,
    Pruned,
    RecipeInfo,
    Report,
    RequirementResult,
    Update,
    Worker,
)

__version__ = "0.1.0"
__all__ = [
    "ApiError", "Artifact", "AsyncClient", "Attempt", "BillhookError", "ChecksumMismatch", "Client",
    "ConnectionFailed", "Dataset", "Download", "DryRun", "DryRunReport", "Estimate", "Event", "Fault", "Foreseen",
    "Graph", "GraphBlock", "GraphBranch", "GraphFrozen", "GraphGroup", "GraphLayer", "InputInvalid", "Job",
    "JobCancelled", "JobFailed", "Key", "LayerCut", "Model", "NetworkSize", "NewKey", "Problem", "Progress", "Pruned",
    "RecipeInfo", "Report", "RequirementResult", "RequirementsMissed", "ServerNotFound", "Spending", "StepCut",
    "Timeout", "Update", "UploadRefused", "Worker",
]  # fmt: skip
