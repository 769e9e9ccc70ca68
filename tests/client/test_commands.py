"""`billhook prune`, and what holds for every command: what is printed, the exit code, the server, the key, the help."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from billhook.cli.app import app
from tests.client.command import Command
from tests.client.fake_server import KEY, PRUNED, FakeServer, report

BILLHOOK = ["prune", "report", "download", "up", "models list", "models show", "models add", "models delete",
            "datasets list", "datasets show", "datasets add", "datasets delete", "keys add", "keys list", "keys revoke",
            "keys show", "recipes list", "recipes show", "recipes schema", "jobs list", "jobs show", "jobs watch",
            "jobs cancel", "jobs retry", "jobs clone", "jobs events", "workers"]  # fmt: skip


def prune(model_file: Path, *more: str) -> list[str]:
    return ["prune", str(model_file), "--data", "builtin:digits", "--recipe", "half", "-o", "out.onnx", *more]


# --- prune -----------------------------------------------------------------------------------------------------------


def test_prune_prints_before_and_after(run: Command, model_file: Path, tmp_path: Path) -> None:
    code, out, err = run(*prune(model_file))
    assert code == 0
    assert (tmp_path / "out.onnx").read_bytes() == PRUNED
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in out.splitlines()]
    assert ["accuracy, test", "98.61%", "98.33%", "-0.28 points"] in rows
    assert ["parameters", "272,474", "120,000", "× 0.440"] in rows
    assert ["latency, cpu, batch 1, 1 thread(s), p50", "0.500 ms", "0.250 ms", "× 0.500"] in rows
    assert "met     latency_ratio: 0.5, required <= 0.6" in out
    assert "warning: the validation split is small" in out
    for told in (
        f"checking model {model_file}\n",
        "checking dataset builtin:digits\n",
        "fine_tune, 75 %, 0:10 left, last epoch",
        "download",
        "out.onnx: 1.0 MiB, sha256",
    ):
        assert told in err


def test_prune_sends_what_it_was_told(run: Command, fake: FakeServer, model_file: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yml").write_text("version: 1\nsteps: []\n")
    (tmp_path / "preprocess.yaml").write_text("mean: [0.5]\n")
    code, _, _ = run(
        "prune", model_file, "--data", "builtin:digits", "--recipe", "recipe.yml", "--output", "out.onnx",
        "--preprocess", "preprocess.yaml", "--splits", '{"seed": 7}', "--require", "latency_ratio<=0.6",
        "--require", " accuracy_drop < 1e-2", "--name", "a/b", "--tag", "x", "--tag", "y", "--device", "cuda:0",
        "--architecture", "resnet20", "--input-shape", "3, 32,32",
    )  # fmt: skip
    assert code == 0
    job = json.loads(fake.bodies[fake.log.index("POST /v1/jobs")])
    assert job["recipe"] == {"version": 1, "steps": []}
    assert job["requirements"] == {"latency_ratio": "<= 0.6", "accuracy_drop": "< 1e-2"}
    assert (job["name"], job["tags"], job["device"]) == ("a/b", ["x", "y"], "cuda:0")
    dataset = json.loads(fake.bodies[fake.log.index("POST /v1/datasets")])
    assert dataset == {"uri": "builtin:digits", "preprocess": {"mean": [0.5]}, "splits": {"seed": 7}}
    assert next(iter(fake.models.values()))["options"] == {"architecture": "resnet20", "input_shape": [3, 32, 32]}


def test_prune_on_what_the_server_fetches(run: Command, fake: FakeServer, model_file: Path) -> None:
    code, _, err = run(
        "prune", model_file, "--data", "s3://sets/train", "--data-sha256", "ab" * 32, "--format", "parquet",
        "--columns", '{"image": "jpg"}', "--recipe", "half", "-o", "out.onnx",
    )  # fmt: skip
    assert code == 0, err
    assert "checking dataset s3://sets/train" in err
    assert json.loads(fake.bodies[fake.log.index("POST /v1/datasets")]) == {
        "uri": "s3://sets/train", "sha256": "ab" * 32, "format": "parquet", "columns": {"image": "jpg"},
    }  # fmt: skip


def test_prune_with_json_prints_one_document(run: Command, fake: FakeServer, model_file: Path, tmp_path: Path) -> None:
    ran = run(*prune(model_file, "--json", "--report", "report.json"))
    assert ran.code == 0
    assert ran.document["job"]["state"] == "succeeded"
    assert ran.document["report"] == report(met=True) == json.loads((tmp_path / "report.json").read_text())
    assert ran.document["output"] == "out.onnx"
    assert ran.document["sha256"] == (fake.etag or "").strip('"')
    assert "error" not in ran.document


def test_requirements_missed_is_3_and_the_file_is_there(
    run: Command, fake: FakeServer, model_file: Path, tmp_path: Path
) -> None:
    fake.requirements_met = False
    code, out, err = run(*prune(model_file, "--report", "report.md"))
    assert code == 3
    assert "MISSED  latency_ratio: 0.7, required <= 0.6" in out
    assert "\nrequirements missed: latency_ratio is 0.7, required <= 0.6\n" in err
    assert (tmp_path / "report.md").read_text() == "| a | b |\n"
    (tmp_path / "out.onnx").unlink()
    ran = run(*prune(model_file, "--json"))
    assert (ran.code, ran.document["error"]["code"]) == (3, "requirements_missed")
    assert not ran.document["requirements_met"]
    assert (tmp_path / "out.onnx").read_bytes() == PRUNED


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["text", "json"])
def test_a_failed_job_is_1(run: Command, fake: FakeServer, model_file: Path, tmp_path: Path, more: list[str]) -> None:
    fault = {"pointer": "/preprocess/size", "message": "the model takes 32x32", "expected": "[32, 32]"}
    fake.job_plan = [
        {"state": "failed", "error": {"code": "dataset_mismatch", "message": "it does not fit", "faults": [fault]}}
    ]
    ran = run(*prune(model_file, *more))
    assert ran.code == 1
    assert "failed: it does not fit" in ran.err
    assert "/preprocess/size: the model takes 32x32 (expected: [32, 32])" in ran.err
    assert not (tmp_path / "out.onnx").exists()
    if more:
        assert ran.document["error"]["code"] == "dataset_mismatch"
        assert ran.document["job"]["state"] == "failed"


def test_the_time_being_up_is_1_and_cancels(run: Command, fake: FakeServer, model_file: Path) -> None:
    fake.job_plan = [{"state": "running"}]
    ran = run(*prune(model_file, "--timeout", "0.5", "--json"))
    assert (ran.code, ran.document["error"]["code"]) == (1, "timeout")
    assert [job["state"] for job in fake.jobs.values()] == ["cancelled"]
    assert ran.document["job"]["state"] == "cancelled"
    assert ran.document["cancelled"] is True
    assert ran.document["error"]["message"].endswith(f"{ran.document['job']['id']} was cancelled")
    assert "was cancelled" in ran.err


@pytest.mark.parametrize(("status", "code"), [(422, 2), (413, 2), (403, 2), (409, 1), (500, 1), (507, 1)])
def test_problems_of_the_server(run: Command, fake: FakeServer, model_file: Path, status: int, code: int) -> None:
    faults = [{"pointer": "/recipe/steps", "message": "needs one", "expected": "a list"},
              {"pointer": "/recipe/seed", "message": "negative", "expected": None}]  # fmt: skip
    fake.submit_problem = {"status": status, "code": "some_code", "detail": "not like this", "faults": faults}
    ran = run(*prune(model_file, "--json"))
    assert ran.code == code
    assert ran.document["error"] == {
        "code": "some_code", "message": "not like this", "status": status, "faults": faults,
    }  # fmt: skip
    assert "error: not like this\n  /recipe/steps: needs one (expected: a list)\n  /recipe/seed: negative\n" in ran.err


def test_a_refused_model_is_2(run: Command, fake: FakeServer, model_file: Path) -> None:
    fake.refusal = {"code": "model_unreadable", "message": "the file is truncated", "faults": []}
    ran = run(*prune(model_file, "--json"))
    assert (ran.code, ran.document["error"]["code"]) == (2, "model_unreadable")
    fake.models.clear()
    fake.refusal = {"code": "poison", "message": "three workers died", "faults": []}
    assert run(*prune(model_file)).code == 1


RIGHT = "prune m.onnx --data d.npz --recipe half -o o"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("prune nowhere.onnx --data builtin:digits --recipe half -o o", "there is no file nowhere.onnx"),
        ("prune m.onnx --data nowhere/ --recipe half -o o", "there is no file or folder nowhere/"),
        ("prune m.onnx --data d.npz --recipe no.yaml -o o", "there is no file no.yaml (a recipe)"),
        ("prune m.onnx --data d.npz --recipe half -o no/o", "no is no folder"),
        ("prune m.onnx --data d.npz --recipe half", "Missing option '--output'"),
        (f"{RIGHT} --bogus", "No such option"),
        (f"{RIGHT} --require fast", "'latency_ratio<=0.6'"),
        (f"{RIGHT} --input-shape 3x32", "e.g. 3,32,32"),
        (f"{RIGHT} --preprocess {{", "not valid JSON"),
        (f"{RIGHT} --report r.pdf", ".md, .json"),
        (f"{RIGHT} --timeout soon", "a valid number"),
        ("jobs show job_unknown", "it is not_found"),
        ("jobs frobnicate", "No such command"),
        ("report job_unknown", "it is not_found"),
    ],
)
def test_bad_usage_is_2(run: Command, tmp_path: Path, arguments: str, told: str) -> None:
    (tmp_path / "m.onnx").write_bytes(b"m")
    (tmp_path / "d.npz").write_bytes(b"d")
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert told in " ".join(err.split())
    if arguments.startswith("prune"):
        ran = run(*arguments.split(), "--json")
        assert ran.code == 2
        assert told in ran.document["error"]["message"]


# --- the server and the key ------------------------------------------------------------------------------------------


def test_no_server_says_how_to_start_one(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BILLHOOK_SERVER")
    code, _, err = run("models", "list")
    assert code == 1
    assert "start one with `billhook up`" in err


def test_no_key_says_where_to_put_it(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BILLHOOK_KEY")
    code, _, err = run("models", "list")
    assert code == 2
    assert "there is no key for http://127.0.0.1" in err
    assert "BILLHOOK_KEY" in err


def test_the_server_of_this_machine(
    run: Command, fake: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("BILLHOOK_SERVER", "BILLHOOK_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("BILLHOOK_DATA_DIR", str(tmp_path))
    (tmp_path / "address").write_text(fake.url)
    (tmp_path / "key").write_text(KEY)
    with (tmp_path / "server.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert run("models", "list").code == 0


def test_the_key_never_shows(run: Command, model_file: Path) -> None:
    """`run` looks for it in all that is printed, in these and all other tests."""
    for arguments in (
        ["models", "list", "--key", KEY, "--server", "http://billhook.example"],
        ["models", "list", "--key", KEY + "ü"],
        ["models", "list", "--kye", KEY],
        ["models", "list", f"--kee={KEY}"],
        ["models", "list", KEY],
        ["models", "show", KEY],
        [KEY],
        prune(model_file, "--preprocess", KEY),
        prune(model_file, "--require", KEY, "--json"),
    ):
        assert run(*arguments).code == 2
    assert run("models", "list", "--key", KEY).code == 0
    wrong = run("models", "list", "--key", "quite-wrong")
    assert wrong.code == 2
    assert "quite-wrong" not in wrong.err


@pytest.mark.parametrize("command", ["", *BILLHOOK])
def test_help_teaches_and_does_not_tell(
    run: Command, monkeypatch: pytest.MonkeyPatch, fake: FakeServer, command: str
) -> None:
    if command == "up":
        return
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(*command.split(), "--help")
    assert code == 0
    assert "130 interrupted" in out
    assert fake.log == []


def test_the_list_of_commands_is_complete(run: Command) -> None:
    names = [command.name for command in app.registered_commands]
    for group in app.registered_groups:
        assert group.typer_instance is not None
        names += [f"{group.typer_instance.info.name} {each.name}" for each in group.typer_instance.registered_commands]
    assert sorted(str(name) for name in names) == sorted(BILLHOOK)


def test_a_fault_of_our_own_is_no_traceback(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("billhook.cli.tables.models", broken)
    code, _, err = run("models", "list")
    assert code == 1
    assert "unexpected ZeroDivisionError: oops" in err
