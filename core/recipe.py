"""The recipe: what to do to a network, as data. Torch-free; the API validates with it.

A recipe is a YAML or JSON document (`recipes/` has ready-made ones). A field that is not built yet is refused, never
ignored: every model here forbids unknown fields, and a value outside the lists below is a fault. All faults of a
document are reported together, each with a JSON pointer and what would be right (`RecipeInvalid.faults`).
"""

from __future__ import annotations

import re
from itertools import takewhile
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from core.baselines import AnyBaseline, Baseline
from core.block_settings import BlockRemoval
from core.documents import DocumentInvalid, load_yaml
from core.errors import Fault, RecipeInvalid
from core.faults import faults_of, given
from core.requirements import Requirements
from core.schedule_settings import Milestones
from core.sections import Items, Section
from core.step_settings import MAX_CHECKPOINTS, Step, Train
from core.task_settings import MEASURES, Reconstruct, TaskName, task_faults
from core.training_settings import Training


class Export(Section):
    """`opset: null` keeps the upload's. Kept widths are multiples of `channel_multiple`. Weights of more than
    `external_data_bytes` in all go to pruned.onnx.data beside pruned.onnx; null: where one file cannot hold them.

    `grouped` says how grouped convolutions are cut: group by group (`whole`), the same channels inside each group
    (`inside`), or whichever of them leaves more to choose from (`auto`). Depthwise ones go channel by channel.
    """

    opset: int | None = Field(None, ge=9, le=26)
    channel_multiple: int = Field(8, ge=1, le=1_024)
    grouped: Literal["auto", "whole", "inside"] = "auto"
    external_data_bytes: int | None = Field(None, ge=1_024, le=2**31 - 1)


# --- what the steps begin with ---------------------------------------------------------------------------------------

MODEL_ID = r"^mdl_[0-9a-z]{1,36}$"


def _weights(value: Any) -> Any:
    if isinstance(value, str) and (value in ("uploaded", "random") or re.fullmatch(MODEL_ID, value)):
        return value
    raise ValueError("is one of uploaded, random, or the id of a model of the same structure (mdl_…)")


Weights = Annotated[Literal["uploaded", "random"] | Annotated[str, Field(pattern=MODEL_ID)], BeforeValidator(_weights)]

# --- the document ----------------------------------------------------------------------------------------------------


class Recipe(Section):
    """A whole recipe, version 1."""

    version: Literal[1] = 1
    name: str | None = Field(None, max_length=200)
    description: str | None = Field(None, max_length=2_000)
    task: TaskName = Field(
        "classification",
        description="what the network is for: classes; its own input (reconstruction); what the original says "
        "(imitation: any network, no labels)",
    )
    reconstruction: Reconstruct = Reconstruct()
    seed: int = Field(0, ge=0, lt=2**63)
    weights: Weights = Field(
        "uploaded",
        description="what the steps begin with. random: the upload's structure, to be trained by a step; mdl_…: the "
        "weights of another model of the same structure, such as a checkpoint that a step has kept",
    )
    head: Literal["keep", "replace"] = Field(
        "keep", description="replace: a new classifier for the dataset's classes, to be trained by a step"
    )
    batchnorm: Literal["keep", "insert"] = Field(
        "keep", description="insert: behind every layer that has none while the steps run, folded away at the end"
    )
    training: Training = Training()
    epochs_budget: int | None = Field(
        None, ge=1, le=1_000_000, description="epochs that all trainings of the steps may take together"
    )
    allow_near_chance: bool = Field(False, description="go on although the original is no better than guessing")
    steps: Items[Step] = Field(min_length=1, max_length=16, description="a list of steps, each with its method")
    baselines: Items[AnyBaseline] = Field(
        (), max_length=4, description="controls that run in the same job: unpruned, random, scratch (of two structures)"
    )
    export: Export = Export()
    requirements: Requirements = Requirements()

    @model_validator(mode="after")
    def _of_one_task(self) -> Recipe:
        """Nothing may be asked for that the task cannot use."""
        found = task_faults(self.task, self.settings())
        if self.task != "classification" and self.head == "replace":
            found.append(f"head: replace is for classification, not for {self.task}")
        if self.task != "reconstruction" and self.reconstruction != Reconstruct():
            found.append(f"reconstruction is for task: reconstruction, not for {self.task}")
        if self.task == "imitation" and any(baseline.kind == "unpruned" for baseline in self.baselines):
            found.append("the baseline unpruned of task: imitation would be the original imitating itself")
        saliencies = [getattr(step, "saliency", "") for step in self.steps]
        if self.task != "classification" and "linear_probe" in saliencies:
            found.append(f"saliency: linear_probe needs labels: it is for classification, not for {self.task}")
        if self.task == "imitation" and self.weights == "uploaded" and saliencies[0].startswith("block_gradient"):
            found.append(
                f"saliency: {saliencies[0]} of the original imitating itself is zero for each block: it is for a step "
                "behind another"
            )
        if self.task != "classification" and any(getattr(step, "racing", None) for step in self.steps):
            found.append(f"racing is for classification, not for {self.task}: it counts the images that are told wrong")
        others = {name for task, names in MEASURES.items() if task != self.task for name in names}
        found += [
            f"the requirement {name} is not measured in task: {self.task}"
            for name in self.requirements.comparisons()
            if name in others
        ]
        if found:
            raise ValueError("; ".join(found))
        return self

    @model_validator(mode="after")
    def _reached(self) -> Recipe:
        """A milestone, the end of a warm-up or of a vicinity's growth may not lie behind the end of every training that
        it is meant for; nor may a rate be for what is frozen."""
        milestones: dict[int, int] = {}
        warmups: dict[int, int] = {}
        for training in self.settings()[1:]:
            if training.freeze == "classifier" and training.optimizer.classifier_lr is not None:
                raise ValueError("classifier_lr is for a classifier that is trained, and freeze: classifier keeps it")
        for training, epochs in self.trainings():
            schedule = training.schedule
            if isinstance(schedule, Milestones) and schedule.milestones:
                last = schedule.milestones[-1]
                if isinstance(last, int):
                    milestones[last] = max(epochs, milestones.get(last, 0))
            if isinstance(training.warmup, int):
                warmups[training.warmup] = max(epochs, warmups.get(training.warmup, 0))
        for last, epochs in milestones.items():
            if last >= epochs:
                raise ValueError(
                    f"a milestone after {last} epochs is never reached: the longest training with that schedule has "
                    f"{epochs}"
                )
        for warmup, epochs in warmups.items():
            if warmup > epochs:
                raise ValueError(
                    f"a warmup of {warmup} epochs never ends: the longest training with it has {epochs}, and the rate "
                    "would never be lr"
                )
        for step in self.steps:
            if not isinstance(step, Train) and (told := step.fine_tune.never_grown(self.epochs_budget)):
                raise ValueError(told)
        return self

    @field_validator("steps")
    @classmethod
    def _not_too_many_checkpoints(cls, value: tuple[Step, ...]) -> tuple[Step, ...]:
        kept = sum(step.checkpoints for step in value if isinstance(step, Train))
        if kept > MAX_CHECKPOINTS:
            raise ValueError(
                f"checkpoint_every asks for {kept} files; at most {MAX_CHECKPOINTS} are kept: a larger checkpoint_every"
            )
        return value

    @field_validator("steps")
    @classmethod
    def _new_head_is_trained(cls, value: tuple[Step, ...], info: ValidationInfo) -> tuple[Step, ...]:
        if info.data.get("head") != "replace" or "training" not in info.data:
            return value
        leading = list(takewhile(lambda step: isinstance(step, Train), value))
        trainings = [step.trainings(info.data["training"])[0] for step in leading]
        settings = [training for training, epochs in trainings if epochs]
        if not settings:
            raise ValueError("head: replace needs a train step in front of pruning: a new classifier knows nothing")
        if all(training.freeze == "classifier" for training in settings):
            raise ValueError("head: replace needs a train step without freeze: classifier, which leaves it as drawn")
        distills = [training.distill for training in settings if training.distill is not None]
        if any(distill.weight or distill.features for distill in distills):
            raise ValueError(
                "with head: replace there is no original to distill from until a train step has made it: distill goes "
                "into the fine_tune of a later step, distill: {weight: 0, features: 0} into the train step"
            )
        return value

    @field_validator("baselines")
    @classmethod
    def _each_once(cls, value: tuple[Baseline, ...], info: ValidationInfo) -> tuple[Baseline, ...]:
        if len({item.name for item in value}) < len(value):
            raise ValueError("each baseline once, scratch once for each structure")
        removes = any(isinstance(step, BlockRemoval) for step in info.data.get("steps", ()))
        if "steps" in info.data and not removes and any(item.name == "scratch_standard" for item in value):
            raise ValueError(
                "structure: standard has as many blocks as the pruned network, and no step of this recipe removes "
                "blocks (method: block_removal)"
            )
        return value

    @property
    def weights_model(self) -> str | None:
        """The id of the model whose weights the steps begin with, where `weights` names one."""
        return None if self.weights in ("uploaded", "random") else self.weights

    @property
    def uses_pruning_split(self) -> bool:
        """Whether anything is scored on the dataset's pruning split, or trained on it."""
        scored = any(getattr(step, "scores", None) == "pruning_split" for step in self.steps)
        return scored or any(training.pruning_split == "trained_on" for training in self.settings())

    def settings(self) -> list[Training]:
        """Of every training that the recipe asks for: its own first, then those of steps and baselines."""
        scratch = [item.settings.training(self.training) for item in self.baselines if item.kind == "scratch"]
        return [self.training, *(training for training, _ in self.trainings()), *scratch]

    def trainings(self) -> list[tuple[Training, int]]:
        """Settings and epochs of each kind of training that steps and baselines ask for, where that can be told."""
        found = [training for step in self.steps for training in step.trainings(self.training)]
        if self.epochs_budget is not None:
            found = [(training, min(epochs, self.epochs_budget)) for training, epochs in found]
        for baseline in self.baselines:
            if baseline.kind == "scratch" and isinstance(baseline.settings.budget, int):
                found.append((baseline.settings.training(self.training), baseline.settings.budget))
        return found

    @field_validator("version", mode="before")
    @classmethod
    def _integer(cls, value: Any) -> Any:
        if isinstance(value, bool | float):  # equal to 1, and yet something else
            raise ValueError("must be the integer 1")
        return value


def parse_recipe(document: Any, *, prefix: str = "") -> Recipe:
    """The recipe that `document` (parsed YAML or JSON) describes. Raises `RecipeInvalid` with every fault."""
    if not isinstance(document, dict):
        fault = Fault(prefix, f"a recipe is an object, not {given(document)}", "an object with the field steps")
        raise RecipeInvalid("the recipe is not an object", faults=[fault])
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        faults = faults_of(error, Recipe, prefix=prefix)
        raise RecipeInvalid(f"the recipe has {len(faults)} fault(s)", faults=faults) from None


def load_recipe(text: str) -> Recipe:
    """A recipe from YAML or JSON text. Raises `RecipeInvalid`."""
    try:
        document = load_yaml(text)
    except DocumentInvalid as error:
        raise RecipeInvalid("the recipe is not valid YAML", faults=error.faults) from None
    return parse_recipe(document)


def recipe_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe document."""
    return Recipe.model_json_schema()
