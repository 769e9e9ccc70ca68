"""Is this job one that can be done? Everything that is wrong with a request is found in one go."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from sqlalchemy.orm import Session

from api.bodies import validate
from api.errors import Refused
from api.fit import summary_faults, task_requirement_faults, top_5_faults, weights_faults
from api.recipe_files import RecipeFiles
from api.schemas.jobs import JobRequest
from api.schemas.recipes import DEVICE, RecipeRequest
from core.errors import Fault, RecipeInvalid
from core.faults import given
from core.precision import ON_CPU, precision_faults
from core.recipe import Recipe, parse_recipe
from core.requirements import Requirements
from store import uploads, workers
from store.errors import NotFound
from store.records import Dataset, Job, Model

Subject = TypeVar("Subject", Model, Dataset)
Asked = TypeVar("Asked", bound=RecipeRequest)


@dataclass(frozen=True)
class Submission(Generic[Asked]):
    """A request that is right, with its recipe resolved and its queue chosen."""

    request: Asked
    recipe: Recipe
    recipe_name: str | None
    queue: str


def check(
    session: Session, owner: str, document: Any, recipes: RecipeFiles, devices: Sequence[str],
    known: Sequence[Fault] = (),
) -> Submission[JobRequest]:  # fmt: skip
    """The submission that `document` (parsed JSON) describes, on a server that has workers for `devices`, and for those
    of the workers that are there now.

    `known`: faults that were found already. Raises `Refused`: `request_invalid` or, if only the recipe is wrong,
    `recipe_invalid`, with all faults; `input_not_ready` if all is well but an upload has not been checked yet.
    """
    plan, faults = _plan(JobRequest, document, recipes, _offered(session, devices))
    faults += known
    waiting: list[str] = []
    model = _subject(session, Model, owner, document.get("model"), "/model", faults, waiting)
    ids = document.get("datasets")
    for position, dataset_id in enumerate(ids if isinstance(ids, list) else []):
        pointer = f"/datasets/{position}"
        dataset = _subject(session, Dataset, owner, dataset_id, pointer, faults, waiting)
        if plan.recipe is not None and dataset is not None:
            faults += top_5_faults(plan.recipe, _requirements(document), dataset.summary)
        if model is not None and dataset is not None:
            faults += summary_faults(
                model.summary, dataset.summary, dataset.options, pointer,
                task="classification" if plan.recipe is None else plan.recipe.task,
                new_head=_wants_new_head(plan.recipe, document),
                wants_pruning=plan.recipe is not None and plan.recipe.uses_pruning_split,
            )  # fmt: skip
    weights = _weights(session, owner, plan.recipe, faults, waiting)
    if model is not None and weights is not None:
        faults += weights_faults(model.summary, weights.summary, "/recipe/weights")
    _refuse(faults, waiting)
    return plan.sound()


def check_clone(
    session: Session, job: Job, changes: Any, recipes: RecipeFiles, devices: Sequence[str]
) -> Submission[JobRequest]:
    """The submission of a job like `job`, but for the fields in `changes` (parsed JSON).

    Raises `Refused` as `check` does, with pointers into the whole request: what the job brings along may be at fault
    today.
    """
    if not isinstance(changes, dict):
        fault = Fault("", f"the body is a JSON object, not {given(changes)}", "an object with what is to be different")
        raise Refused("request_invalid", "the request is not an object", faults=[fault])
    same = {"model": job.model_id, "datasets": job.dataset_ids}
    faults = [
        Fault(f"/{name}", "a clone is of the same model and datasets", "leave it out; POST /v1/jobs takes others")
        for name in same
        if name in changes
    ]
    own = {"name": job.name, "kind": job.kind, "tags": job.tags, "recipe": job.recipe,
           "requirements": job.requirements, "device": job.device}  # fmt: skip
    submission = check(session, job.owner, own | changes | same, recipes, devices, faults)
    if "recipe" in changes:
        return submission
    return dataclasses.replace(submission, recipe_name=job.recipe_name)


def check_recipe(session: Session, owner: str, document: Any, recipes: RecipeFiles, devices: Sequence[str]) -> Recipe:
    """The recipe that `document` (parsed JSON, a `RecipeRequest`) names or holds, with its defaults.

    Raises `Refused` as `check` does, for what can be known without the model and the dataset.
    """
    plan, faults = _plan(RecipeRequest, document, recipes, _offered(session, devices))
    waiting: list[str] = []
    _weights(session, owner, plan.recipe, faults, waiting)
    _refuse(faults, waiting)
    return plan.sound().recipe


@dataclass(frozen=True)
class _Plan(Generic[Asked]):
    """What a request comes to; each None stands for faults that were found."""

    request: Asked | None
    recipe: Recipe | None
    recipe_name: str | None
    queue: str | None

    def sound(self) -> Submission[Asked]:
        """Once there are no faults."""
        assert self.request is not None
        assert self.recipe is not None
        assert self.queue is not None
        return Submission(self.request, self.recipe, self.recipe_name, self.queue)


def _plan(
    kind: type[Asked], document: Any, recipes: RecipeFiles, devices: Sequence[str]
) -> tuple[_Plan[Asked], list[Fault]]:
    """The part of a request that needs no upload, and its faults. Raises `Refused` for what is no object at all."""
    if not isinstance(document, dict):
        needed = ", ".join(name for name, field in kind.model_fields.items() if field.is_required())
        fault = Fault("", f"the body is a JSON object, not {given(document)}", f"an object with {needed}")
        raise Refused("request_invalid", "the request is not an object", faults=[fault])
    request, faults = validate(kind, document)
    faults = [fault for fault in faults if "recipe" not in document or not _in_recipe(fault)]
    recipe, recipe_name, found = _recipe(document, recipes)
    faults += found
    if recipe is not None:
        faults += task_requirement_faults(recipe.task, _requirements(document))
    queue, found = _queue(document.get("device", "auto"), devices)
    if queue == "cpu" and recipe is not None:
        found = [*found, *precision_faults(recipe, ON_CPU, "training on the CPU", prefix="/recipe")]
    return _Plan(request, recipe, recipe_name, queue), faults + found


def _requirements(document: dict[str, Any]) -> Requirements:
    """The job's own, whatever else is wrong with the request; none where they are: that is said already."""
    try:
        return Requirements.model_validate(document.get("requirements", {}))
    except ValidationError:
        return Requirements()


def _wants_new_head(recipe: Recipe | None, document: dict[str, Any]) -> bool:
    """As the recipe says, or means to say where it has faults: what it is about must not add to them."""
    if recipe is not None:
        return recipe.head == "replace"
    given = document.get("recipe")
    return isinstance(given, dict) and given.get("head") == "replace"


def _weights(
    session: Session, owner: str, recipe: Recipe | None, faults: list[Fault], waiting: list[str]
) -> Model | None:
    """The model whose weights the recipe begins with, if it names one that is ready."""
    if recipe is None or recipe.weights_model is None:
        return None
    return _subject(session, Model, owner, recipe.weights_model, "/recipe/weights", faults, waiting)


def _refuse(faults: list[Fault], waiting: list[str]) -> None:
    if not faults and waiting:
        raise Refused("input_not_ready", f"still being checked: {', '.join(waiting)}; try again soon")
    if not faults:
        return
    of_recipe = all(_in_recipe(fault) for fault in faults)
    raise Refused(
        "recipe_invalid" if of_recipe else "request_invalid",
        f"the {'recipe' if of_recipe else 'request'} has {len(faults)} fault(s)",
        faults=faults,
    )


def _in_recipe(fault: Fault) -> bool:
    return fault.pointer == "/recipe" or fault.pointer.startswith("/recipe/")


def _recipe(document: dict[str, Any], recipes: RecipeFiles) -> tuple[Recipe | None, str | None, list[Fault]]:
    recipe = document.get("recipe")
    if "recipe" not in document:
        return None, None, []  # said already: the field is required
    if isinstance(recipe, str):
        return _named_recipe(recipe, recipes)
    if not isinstance(recipe, dict):
        fault = Fault("/recipe", f"a recipe is a name or an object, not {given(recipe)}", "a name or an object")
        return None, None, [fault]
    try:
        return parse_recipe(recipe, prefix="/recipe"), None, []
    except RecipeInvalid as error:
        return None, None, list(error.faults)


def _named_recipe(name: str, recipes: RecipeFiles) -> tuple[Recipe | None, str | None, list[Fault]]:
    try:
        recipe = recipes.get(name)
    except RecipeInvalid as error:
        return None, None, [Fault("/recipe", f"the recipe {name} of this server is not valid: {error.message}")]
    if recipe is None:
        return None, None, [Fault("/recipe", "there is no recipe of that name", f"one of {', '.join(recipes.valid())}")]
    return recipe, name, []


def _offered(session: Session, devices: Sequence[str]) -> list[str]:
    """What jobs may ask for: the devices that the operator names, and those of workers that have joined."""
    return [*devices, *(device for device in workers.living_devices(session) if device not in devices)]


def _queue(device: Any, devices: Sequence[str]) -> tuple[str | None, list[Fault]]:
    """The queue whose workers have the device: a GPU's worker serves `gpu` and the queue of its own number."""
    if not isinstance(device, str) or not DEVICE.fullmatch(device):
        return None, []  # said already: the pattern
    if device == "auto":
        return ("cpu" if set(devices) == {"cpu"} else "gpu"), []
    if device in devices:
        return ("cpu" if device == "cpu" else f"gpu-{device.partition(':')[2]}"), []
    return None, [Fault("/device", f"this installation has no worker for {device}", ", ".join(["auto", *devices]))]


def _subject(
    session: Session, table: type[Subject], owner: str, subject_id: Any, pointer: str, faults: list[Fault],
    waiting: list[str],
) -> Subject | None:  # fmt: skip
    """The model or dataset if it is ready; else why not, in `faults` or `waiting`."""
    if not isinstance(subject_id, str):
        return None  # said already: the type
    kind = table.__name__.lower()
    try:
        subject = uploads.get(session, table, owner, subject_id)
    except NotFound:
        faults.append(Fault(pointer, f"there is no {kind} {subject_id[:60]}", f"the id of a {kind} that is ready"))
        return None
    if subject.state == "refused":
        reason = (subject.refusal or {}).get("message", "no reason was given")
        faults.append(Fault(pointer, f"the {kind} was refused: {reason}", f"a {kind} whose state is ready"))
        return None
    if subject.state == "checking":
        waiting.append(subject_id)
        return None
    return subject
