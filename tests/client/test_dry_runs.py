"""Dry runs by the class and by the command: what is asked, waited for, printed, and given up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import billhook
from billhook.operations import dry_runs
from tests.client.command import Command
from tests.client.dry_run_answer import dry_run
from tests.client.either import Either
from tests.client.fake_server import FakeServer

ASK, LOOK, FORGET = "POST /v1/jobs", "GET /v1/dry-runs/dry_1", "DELETE /v1/dry-runs/dry_1"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_runs, "PAUSE_SECONDS", 0.02)


def test_a_dry_run(client: Either, fake: FakeServer, model_file: Path, data_file: Path) -> None:
    phases: list[str] = []
    result = client.dry_run(
        model_file, data_file, "half", requirements={"params_ratio": "<= 0.5"}, device="cpu", timeout=60,
        on_progress=lambda progress: phases.append(progress.phase),
    )  # fmt: skip
    report = result.report
    assert list(dict.fromkeys(phases)) == ["upload model", "upload dataset", "dry run"]
    body = json.loads(fake.bodies[fake.log.index(ASK)])
    assert body == {"model": result.model.id, "datasets": [result.dataset.id], "recipe": "half", "device": "cpu",
                    "requirements": {"params_ratio": "<= 0.5"}}  # fmt: skip
    assert fake.queries == [{"dry_run": "true", "wait": "20"}]
    assert (fake.jobs, fake.count(FORGET)) == ({}, 0)
    assert (report.original.params, report.pruned.params) == (272474, 120000)
    assert report.steps[1].layers[0].weight_after == (8, 1, 3, 3)
    assert (report.requirements[0].holds, report.requirements[1].holds) == (True, None)
    assert report.latency is not None
    assert report.latency.low == 0.45
    assert report.estimate.spending[1].part == "random"
    assert report.estimate.estimated_seconds == 90.0
    assert report.assumptions == ("Nothing was trained.",)
    assert report.raw == fake.dry_run
    again = client.dry_run(result.model.id, result.dataset.id, "half")
    assert again == result
    assert fake.count("POST /v1/models") == 1


def test_one_that_takes_long_is_waited_for(client: Either, fake: FakeServer, model_file: Path) -> None:
    fake.dry_run_looks = 3
    assert client.dry_run(model_file, "builtin:digits", "half").report.raw == fake.dry_run
    assert (fake.count(ASK), fake.count(LOOK), fake.count(FORGET)) == (1, 3, 1)
    assert [query["wait"] for query in fake.queries] == ["20"] * 4


def test_the_time_being_up_gives_it_up(client: Either, fake: FakeServer, model_file: Path) -> None:
    fake.dry_run_looks = 1_000
    with pytest.raises(billhook.Timeout, match="waiting for the dry run"):
        client.dry_run(model_file, "builtin:digits", "half", timeout=0.4)
    assert fake.log[-1] == FORGET
    assert all(float(query["wait"]) <= 0.4 for query in fake.queries)


def test_what_the_job_would_fail_with_is_raised(client: Either, fake: FakeServer, model_file: Path) -> None:
    faults = [{"pointer": "/steps/0/target/macs", "message": "0.2 is the least", "expected": "at least 0.2"}]
    fake.submit_problem = {"status": 422, "code": "target_unreachable", "detail": "not so far", "faults": faults}
    with pytest.raises(billhook.ApiError, match="not so far") as caught:
        client.dry_run(model_file, "builtin:digits", "half")
    assert caught.value.code == "target_unreachable"
    assert caught.value.faults[0].pointer == "/steps/0/target/macs"


def test_what_is_wrong_here_is_found_before_anything_is_sent(
    client: Either, fake: FakeServer, model_file: Path, tmp_path: Path
) -> None:
    for data, recipe in ((tmp_path / "no", "half"), ("builtin:digits", tmp_path / "no.yaml")):
        with pytest.raises(billhook.InputInvalid):
            client.dry_run(model_file, data, recipe)
    assert fake.log == []


# --- the command -----------------------------------------------------------------------------------------------------


def asked(model_file: Path, *more: str) -> list[str]:
    return ["prune", str(model_file), "--data", "builtin:digits", "--recipe", "half", "--dry-run", *more]


def test_the_table(run: Command, fake: FakeServer, model_file: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    code, out, err = run(*asked(model_file))
    assert code == 0
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
    assert ["conv1", "Conv2d", "32 → 8", "32×1×3×3 → 8×1×3×3", "288 → 72", "28,800 → 7,200"] in rows
    assert ["parameters", "272,474", "120,000", "× 0.440"] in rows
    assert ["file", "1.0 MiB", "468.8 KiB", "× 0.440"] in rows
    assert ["latency, cpu, 1 thread", "2.000 ms", "1.000 ms", "× 0.500 (0.450 to 0.550)"] in rows
    for line in (
        "holds   params_ratio: 0.44, required <= 0.5",
        "unknown accuracy_drop: required <= 0.01 (only the job)",
        "cost: 12 (9 to 12) epochs, 12,000 images, 60 epoch-parameters",
        "  random: 5 epochs, 5,000 images",
        "time: about 1:30 (1:20 to 2:05) on cpu with 2 thread(s)",
        "assumed: Nothing was trained.",
        "warning: the validation split is small",
    ):
        assert line in out.splitlines()
    assert "dry run" in err
    assert (set(tmp_path.iterdir()), fake.jobs) == (before, {})


def test_it_can_be_added_to_a_command_as_it_stands(run: Command, model_file: Path, tmp_path: Path) -> None:
    code, _, _ = run(*asked(model_file, "-o", "out.onnx", "--report", "report.md", "--name", "a", "--tag", "b"))
    assert code == 0
    assert not (tmp_path / "out.onnx").exists()
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize(("met", "expected"), [(True, 0), (None, 0), (False, 3)])
def test_the_exit_code_says_what_can_be_judged(
    run: Command, fake: FakeServer, model_file: Path, met: bool | None, expected: int
) -> None:
    fake.dry_run = dry_run(met=met)
    code, out, _ = run(*asked(model_file, "--json"))
    document = json.loads(out)
    assert (code, document["requirements_met"], document["dry_run"]) == (expected, met, fake.dry_run)
    assert document["model"] in fake.models
    code, out, _ = run(*asked(model_file))
    assert code == expected
    assert ("MISSED  params_ratio" in out) == (met is False)
    assert ("target would not be met: step/1/macs 0.44, asked 0.4" in out) == (met is False)


def test_times_that_are_not_known_here(run: Command, fake: FakeServer, model_file: Path) -> None:
    fake.dry_run["estimate"] |= dict.fromkeys(
        ("estimated_seconds", "estimated_seconds_low", "estimated_seconds_high")
    )  # fmt: skip
    fake.dry_run |= {"latency": None, "steps": []}
    code, out, _ = run(*asked(model_file))
    assert code == 0
    assert "time: not known here" in out
    assert "latency" not in out
    assert "conv1" not in out


def test_a_refusal_is_bad_usage(run: Command, fake: FakeServer, model_file: Path) -> None:
    fake.submit_problem = {"status": 422, "code": "nothing_removed", "detail": "nothing may go", "faults": []}
    code, _, err = run(*asked(model_file))
    assert code == 2
    assert "nothing may go" in err


def test_one_that_took_the_server_too_long_is_none(run: Command, fake: FakeServer, model_file: Path) -> None:
    fake.submit_problem = {"status": 422, "code": "time_limit", "detail": "its time is over", "faults": []}
    code, _, err = run(*asked(model_file))
    assert code == 1
    assert "its time is over" in err


def test_without_it_the_output_is_needed(run: Command, fake: FakeServer, model_file: Path) -> None:
    code, _, err = run("prune", model_file, "--data", "builtin:digits", "--recipe", "half")
    assert code == 2
    assert "Missing option '--output'" in err
    assert fake.log == []
