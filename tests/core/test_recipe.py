"""Recipes: what is taken, and what every fault says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError

from core.devices import require_precision
from core.errors import Fault, RecipeInvalid
from core.job import DatasetOptions
from core.precision import ON_CPU, precision_faults
from core.recipe import parse_recipe

STEP: dict[str, Any] = {"method": "filter_norm", "target": {"params": 0.5}}
BLOCKS: dict[str, Any] = {"method": "block_removal", "target": {"blocks": 0.5}}


def faults(document: Any) -> dict[str, Fault]:
    """By pointer."""
    with pytest.raises(RecipeInvalid) as caught:
        parse_recipe(document)
    found = {fault.pointer: fault for fault in caught.value.faults}
    assert len(found) == len(caught.value.faults)
    return found


def test_a_value_of_another_type_is_a_fault() -> None:
    document = {
        "version": True,
        "seed": True,
        "allow_near_chance": 1,
        "training": {
            "batch_size": "32",
            "optimizer": {"name": "sgd", "lr": float("inf"), "momentum": "0.9", "nesterov": "yes"},
            "schedule": {"name": "multistep", "milestones": [True, "0.5"]},
        },
        "steps": [
            STEP | {"ratio_per_round": "0.5", "every_epochs": 2.0, "fine_tune": {"epochs": "1"}},
            STEP | {"fine_tune": {"optimizer": {"name": "adamw", "betas": [False, "1"]}}},
        ],
    }
    assert set(faults(document)) == {
        "/version", "/seed", "/allow_near_chance", "/training/batch_size", "/training/optimizer/lr",
        "/training/optimizer/momentum", "/training/optimizer/nesterov", "/training/schedule/milestones/0",
        "/training/schedule/milestones/1", "/steps/0/ratio_per_round", "/steps/0/every_epochs",
        "/steps/0/fine_tune/epochs", "/steps/1/fine_tune/optimizer/betas/0", "/steps/1/fine_tune/optimizer/betas/1",
    }  # fmt: skip


def test_an_integer_is_a_number_and_a_list_a_tuple() -> None:
    recipe = parse_recipe(
        {
            "training": {"optimizer": {"name": "adamw", "lr": 1, "betas": [0, 0.5]}},
            "steps": [STEP | {"target": {"params": 1_000, "macs": 0.5}}],
        }
    )
    assert recipe.training.model_dump()["optimizer"]["lr"] == 1.0
    assert recipe.training.model_dump()["optimizer"]["betas"] == (0.0, 0.5)
    target = recipe.steps[0].target
    assert (target.params, type(target.params), target.macs) == (1_000, int, 0.5)
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe, "as it comes back from the database"


def test_options_of_a_dataset_are_as_strict() -> None:
    given = {"preprocess": {"scale": "1", "size": [True, 8], "class_order": [1]}, "splits": {"validation": "0.1"}}
    with pytest.raises(ValidationError) as caught:
        DatasetOptions.model_validate(given)
    assert {error["loc"] for error in caught.value.errors()} == {
        ("preprocess", "scale"), ("preprocess", "size", 0), ("preprocess", "class_order", 0), ("splits", "validation"),
    }  # fmt: skip
    assert DatasetOptions.model_validate({"preprocess": {"size": [8, 8], "mean": [0]}}).preprocess.size == (8, 8)


def test_one_number_stands_for_all_channels() -> None:
    preprocess = DatasetOptions.model_validate({"preprocess": {"mean": 0.5, "std": 2}}).preprocess
    assert (preprocess.mean, preprocess.std) == ((0.5,), (2.0,))
    with pytest.raises(ValidationError):
        DatasetOptions.model_validate({"preprocess": {"mean": True}})


@pytest.mark.parametrize(
    ("document", "pointer", "message", "expected"),
    [
        ({}, "/steps", "it is missing", "a list of steps, each with its method"),
        ({"steps": {}}, "/steps", "an object is given where a list belongs", "a list"),
        ({"steps": []}, "/steps", "0 items are too few", "at least 1 items"),
        ({"steps": [STEP] * 17}, "/steps", "17 items are too many", "at most 16 items"),
        ({"steps": [3]}, "/steps/0", "the number 3 is given where an object belongs", "an object"),
        ({"steps": [STEP], "seed": True}, "/seed", "true is given where an integer belongs", "an integer"),
        ({"steps": [STEP], "name": None, "seed": "1"}, "/seed", "the text '1' is given where an integer belongs",
         "an integer"),
        ({"steps": [STEP], "seed": -1}, "/seed", "the number -1 is out of range", "at least 0"),
        ({"steps": [STEP], "name": "x" * 300}, "/name", "300 characters are too many", "at most 200 characters"),
        ({"steps": [STEP], "task": "x"}, "/task", "the text 'x' is not one of what may be here",
         "'classification', 'reconstruction' or 'imitation'"),
        ({"steps": [STEP], "task": "imitation", "training": {"distill": {}, "label_smoothing": 0.1},
          "baselines": ["unpruned"], "requirements": {"ssim": ">= 0.9"}, "reconstruction": {"ssim_weight": 1.0}},
         "", "label_smoothing is for classification, not for imitation; distill is for classification, not for "
         "imitation; reconstruction is for task: reconstruction, not for imitation; the baseline unpruned of task: "
         "imitation would be the original imitating itself; the requirement ssim is not measured in task: imitation",
         None),
        ({"steps": [STEP | {"fine_tune": {"augment": {"noise": 0.1}}}], "task": "reconstruction"}, "",
         "augment.noise is not for reconstruction: the image that is wanted back would be as damaged as the one that "
         "is given", None),
        ({"steps": [STEP], "task": "imitation", "baselines": [{"scratch": {"distill": {}}}]}, "",
         "distill is for classification, not for imitation", None),
        ({"steps": [STEP], "requirements": {"cosine": ">= 0.9"}}, "",
         "the requirement cosine is not measured in task: classification", None),
        ({"steps": [STEP], "requirements": {"accuracy": "3"}}, "/requirements/accuracy",
         "the text '3' is not of the form that is needed", 'a comparison and a number, as "<= 0.01"'),
        ({"steps": [STEP], "export": {"opsett": 1}}, "/export/opsett",
         "unknown field 'opsett', or one that is not built yet",
         "one of channel_multiple, external_data_bytes, grouped, opset"),
        ({"steps": [STEP], "training": {"optimizer": {"name": "lion"}}}, "/training/optimizer/name",
         "no name 'lion' is known here", "'sgd', 'adamw'"),
        ({"steps": [STEP], "training": {"schedule": {}}}, "/training/schedule/name", "its name is missing",
         "'constant', 'cosine', 'cosine_restarts', 'multistep', 'one_cycle', 'plateau', 'rising_restarts'"),
        ({"steps": [STEP | {"fine_tune": {"optimizer": {"name": "adamw", "lrr": 1}}}]},
         "/steps/0/fine_tune/optimizer/lrr", "unknown field 'lrr', or one that is not built yet",
         "one of betas, classifier_lr, decay_norm_and_bias, lr, name, weight_decay"),
        ({"steps": [{"method": "filter_norm", "target": {"macs": 1.0}}]}, "/steps/0/target/macs",
         "a float is a share of the original, between 0 and 1; 1.0 is none. An absolute count is an integer", None),
        ({"steps": [{"method": "filter_norm", "target": {"size": 0}}]}, "/steps/0/target/size",
         "a count is at least 1", None),
        ({"steps": [{"method": "filter_norm", "target": {"latency": 1}}]}, "/steps/0/target/latency",
         "must be a share of the original's as a float between 0 and 1: milliseconds would be another target on each "
         "machine", None),
        ({"steps": [{"method": "filter_norm", "target": {"latency": 1.0}}]}, "/steps/0/target/latency",
         "must be a share of the original's as a float between 0 and 1: milliseconds would be another target on each "
         "machine", None),
        ({"steps": [{"method": "filter_norm", "target": {"max_accuracy_drop": 0.1}}]}, "/steps/0/target",
         "needs at least one of params, macs, filters, blocks, size, latency; max_accuracy_drop is a guard beside them",
         None),
        ({"steps": [{"method": "filter_norm", "target": {"blocks": 0.5}}]}, "/steps/0",
         "filter_norm removes no blocks: target.blocks is of method: block_removal", None),
        ({"steps": [{"method": "filter_norm", "target": {"branches": 0.5}}]}, "/steps/0/target/branches",
         "unknown field 'branches', or one that is not built yet",
         "one of blocks, filters, latency, macs, max_accuracy_drop, params, size"),
        ({"steps": [BLOCKS | {"saliency": "orakle"}]}, "/steps/0/saliency",
         "the text 'orakle' is not one of what may be here",
         "'oracle', 'activation_change', 'activation_change_plus_one', 'activation_mean', 'block_gradient', "
         "'block_gradient_max', 'weights_mean', 'linear_probe' or 'random'"),
        ({"steps": [BLOCKS | {"replace": {"with": "ones"}}]}, "/steps/0/replace/with",
         "the text 'ones' is not one of what may be here", "'random' or 'zero'"),
        ({"steps": [BLOCKS | {"replace": {"wth": "zero"}}]}, "/steps/0/replace/wth",
         "unknown field 'wth', or one that is not built yet", "one of alone_epochs, neighbours, with"),
        ([], "", "a recipe is an object, not a list", "an object with the field steps"),
    ],
)  # fmt: skip
def test_a_fault_says_what_would_be_right(document: Any, pointer: str, message: str, expected: str | None) -> None:
    assert faults(document) == {pointer: Fault(pointer, message, expected)}


def test_a_field_named_like_a_tag_is_a_field() -> None:
    assert set(faults({"steps": [STEP], "sgd": 1, "training": {"optimizer": {"name": "sgd", "float": 1}}})) == {
        "/sgd", "/training/optimizer/float",
    }  # fmt: skip


def test_spans_are_shares_or_epochs() -> None:
    """0.5 is half of a training, 5 are epochs; a document that comes back from the database says the same."""
    recipe = parse_recipe(
        {
            "training": {"warmup": 5, "schedule": {"name": "multistep", "milestones": [4, 9]}},
            "steps": [STEP | {"fine_tune": {"epochs": 10, "warmup": 0.05, "clip_norm": 0}}],
        }
    )
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    resolved = recipe.steps[0].fine_tune.resolved(recipe.training)
    assert (type(recipe.training.warmup), resolved.warmup) == (int, 0.05)
    assert resolved.schedule == recipe.training.schedule


@pytest.mark.parametrize(
    ("training", "pointer", "words"),
    [
        ({"warmup": 1.0}, "/training/warmup", "a number of epochs is an integer"),
        ({"warmup": -1}, "/training/warmup", "at least 1"),
        ({"warmup": "0.1"}, "/training/warmup", "must be a number"),
        ({"schedule": {"name": "multistep", "milestones": [0]}}, "/training/schedule/milestones/0", "at least 1"),
        ({"schedule": {"name": "multistep", "milestones": [0.5, 7]}}, "/training/schedule/milestones", "all shares"),
        ({"schedule": {"name": "multistep", "milestones": [7, 3]}}, "/training/schedule/milestones", "ascend"),
        ({"schedule": {"name": "multistep", "milestones": [12]}}, "", "the longest training with that schedule has 10"),
        ({"schedule": {"name": "rising_restarts", "milestones": [12]}}, "", "never reached"),
        ({"schedule": {"name": "rising_restarts", "milestones": []}}, "/training/schedule/milestones", "a milestone"),
        ({"schedule": {"name": "rising_restarts", "factor": 1}}, "/training/schedule/factor", "above 1"),
        ({"warmup": 11}, "", "a warmup of 11 epochs never ends: the longest training with it has 10"),
        ({"schedule": {"name": "one_cycle", "momentum": [0.9, 0.8]}}, "/training/schedule/momentum", "[least, most]"),
        ({"augment": "flip"}, "/training/augment", "one of none, crop, crop_flip, or an object"),
        ({"augment": {"crop": 1}}, "/training/augment/crop", "true or false"),
        ({"augment": {"rotate": 200}}, "/training/augment/rotate", "at most 180"),
        ({"augment": {"blur": 1}}, "/training/augment/blur", "unknown field 'blur'"),
        ({"distill": {"weight": 2}}, "/training/distill/weight", "at most 1"),
        ({"freeze": "classifier", "optimizer": {"name": "sgd", "classifier_lr": 1.0}}, "", "classifier_lr is for"),
        ({"optimizer": {"name": "sgd", "classifier_lr": 0}}, "/training/optimizer/classifier_lr", "above 0"),
        ({"precision": "float64"}, "/training/precision", "'float32', 'bfloat16' or 'float16'"),
        ({"compile": 1}, "/training/compile", "true or false"),
        ({"distill": {"features": -1}}, "/training/distill/features", "at least 0"),
        ({"freeze": "all"}, "/training/freeze", "'none', 'classifier' or 'body'"),
        ({"clip_norm": -1}, "/training/clip_norm", "at least 0"),
        ({"label_smoothing": 1.0}, "/training/label_smoothing", "below 1"),
    ],
)
def test_what_is_wrong_with_a_training(training: dict[str, Any], pointer: str, words: str) -> None:
    found = faults({"training": training, "steps": [STEP]})
    assert list(found) == [pointer]
    assert words in f"{found[pointer].message} {found[pointer].expected}"


def test_augmentations_by_name_and_one_by_one() -> None:
    """A document comes back as it was written, the short names too; a fine-tuning may turn off what is on."""
    written = {"crop": True, "rotate": 10.0, "mixup": 0.2}
    step = STEP | {"fine_tune": {"augment": "none", "epochs": 3, "distill": {"weight": 0}}}
    recipe = parse_recipe({"training": {"augment": written, "distill": {}}, "steps": [STEP, step]})
    dumped = recipe.model_dump(mode="json")
    assert dumped["training"]["augment"] == written
    assert dumped["steps"][1]["fine_tune"]["augment"] == "none"
    assert parse_recipe(dumped) == recipe
    first, second = (step.fine_tune.resolved(recipe.training) for step in recipe.steps)
    assert first.augment == recipe.training.augment
    assert not second.augment.crop
    assert second.distill is not None
    assert second.distill.weight == 0
    for name in ("none", "crop", "crop_flip"):
        assert (
            parse_recipe({"training": {"augment": name}, "steps": [STEP]}).model_dump()["training"]["augment"] == name
        )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"baselines": [{"scratch": {"budget": 5, "warmup": 1000}}]}, "a warmup of 1000 epochs never ends"),
        (
            {"baselines": [{"scratch": {"budget": 5, "schedule": {"name": "multistep", "milestones": [300]}}}]},
            "a milestone after 300 epochs is never reached",
        ),
    ],
)
def test_a_control_s_schedule_is_looked_at_too(changes: dict[str, Any], told: str) -> None:
    assert told in faults({"steps": [STEP]} | changes)[""].message


def test_a_low_fine_tuning_may_be_the_longest() -> None:
    fine_tune = {"policy": {"low": 20, "high": {"loops": 2}}, "epochs": 5,
                 "schedule": {"name": "multistep", "milestones": [15]}}  # fmt: skip
    parse_recipe({"steps": [STEP | {"fine_tune": fine_tune}]})


def test_random_scores_are_not_normalised() -> None:
    found = faults({"steps": [STEP | {"signal": "random", "normalize": "max"}]})
    assert "leave one of them out" in found["/steps/0"].message
    step = parse_recipe({"steps": [STEP | {"normalize": "max"}]}).steps[0].at_random()
    assert step.model_dump()["normalize"] == "none"


def test_local_fine_tunings() -> None:
    low = {"low": 1, "high": {"loops": 2}}
    written = {"left": 2, "right": 0, "grow": 0.5, "fine_tunings": "low"}
    recipe = parse_recipe({"steps": [STEP | {"fine_tune": {"policy": low, "local": written}}]})
    assert recipe.model_dump(mode="json")["steps"][0]["fine_tune"]["local"] == written
    assert parse_recipe(recipe.model_dump(mode="json")) == recipe
    for local, pointer, words in (
        ({"fine_tunings": "low"}, "/steps/0/fine_tune", "the policy has none"),
        ({"grow": 1.5}, "/steps/0/fine_tune/local/grow", "a share"),
        ({"left": -1}, "/steps/0/fine_tune/local/left", "at least 0"),
        ({"blocks": 3}, "/steps/0/fine_tune/local/blocks", "unknown field"),
    ):
        found = faults({"steps": [STEP | {"fine_tune": {"local": local}}]})
        assert list(found) == [pointer]
        assert words in f"{found[pointer].message} {found[pointer].expected}"
    assert "unknown field" in faults({"training": {"local": {}}, "steps": [STEP]})["/training/local"].message


@pytest.mark.parametrize(
    ("fine_tune", "budget", "longest"),
    [
        ({"epochs": 2, "local": {"grow": 9}}, None, 2),
        ({"epochs": 9, "local": {"grow": 9}}, None, 9),
        ({"epochs": 10, "local": {"grow": 9}}, None, None),
        ({"epochs": 10, "local": {"grow": 9}}, 8, 8),
        ({"epochs": 2, "local": {"grow": 0.9}}, None, None),
        ({"epochs": 2, "local": {}}, None, None),
        ({"epochs": 2, "policy": {"low": 10, "high": {"loops": 2}}, "local": {"grow": 9}}, None, None),
        ({"epochs": 9, "policy": {"low": 3, "high": {"loops": 2}}, "local": {"grow": 3, "fine_tunings": "low"}},
         None, 3),
    ],
)  # fmt: skip
def test_a_vicinity_gets_to_the_whole_network(
    fine_tune: dict[str, Any], budget: int | None, longest: int | None
) -> None:
    document = {"epochs_budget": budget, "steps": [STEP | {"fine_tune": fine_tune}]}
    if longest is None:
        parse_recipe(document)
    else:
        told = faults(document)[""].message
        assert told.endswith(f"is never reached: the longest local fine-tuning has {longest}")


def test_a_budget_of_epochs() -> None:
    assert parse_recipe({"epochs_budget": 100, "steps": [STEP]}).epochs_budget == 100
    assert "at least 1" in str(faults({"epochs_budget": 0, "steps": [STEP]})["/epochs_budget"].expected)
    late = {"schedule": {"name": "multistep", "milestones": [8]}, "epochs": 20}
    told = faults({"epochs_budget": 8, "steps": [STEP | {"fine_tune": late}]})[""].message
    assert "the longest training with that schedule has 8" in told


def test_a_precision_that_a_device_has_not_is_named_wherever_it_is() -> None:
    half = {"precision": "float16"}
    recipe = parse_recipe(
        {
            "training": half,
            "steps": [{"method": "train", "epochs": 1, "precision": "bfloat16"}, STEP | {"fine_tune": half}],
            "baselines": ["random", {"scratch": half}],
        }
    )
    found = precision_faults(recipe, ON_CPU, "training on the CPU", prefix="/recipe")
    assert [fault.pointer for fault in found] == [
        "/recipe/training/precision", "/recipe/steps/1/fine_tune/precision", "/recipe/baselines/1/scratch/precision",
    ]  # fmt: skip
    assert found[0] == Fault(found[0].pointer, "float16 is not for training on the CPU", "float32, bfloat16")
    with pytest.raises(RecipeInvalid) as caught:
        require_precision(recipe, torch.device("cpu"))
    assert caught.value.faults[0].pointer == "/training/precision"
