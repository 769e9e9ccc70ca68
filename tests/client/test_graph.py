"""What a model is made of: by both clients, and printed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import billhook
from api.openapi import GRAPH_EXAMPLE
from billhook.cli.graph_tables import names
from billhook.results import Graph, parse
from tests.client.command import Command
from tests.client.either import Either
from tests.client.fake_answers import GRAPH
from tests.client.fake_server import FakeServer

REFUSAL = {"code": "operator_unknown", "message": "Einsum is not on the list", "faults": []}


@pytest.fixture
def model_id(run: Command, model_file: Path) -> str:
    found: str = run("models", "add", model_file, "--json").document["id"]
    return found


def test_the_graph_of_a_model(client: Either, fake: FakeServer, model_id: str) -> None:
    graph = client.get_model_graph(model_id)
    assert graph.raw == GRAPH
    assert graph.totals["residual_blocks"] == 1
    assert graph.layers[0].output_shape == (16, 32, 32)
    assert (graph.groups[0].producers[0], graph.groups[0].always_kept) == ("conv1", 3)
    assert [branch.bypassable for branch in graph.blocks[1].branches] == [True, False]
    assert graph.frozen[0].layers == ("fc",)
    with pytest.raises(billhook.ApiError) as caught:
        client.get_model_graph("mdl_none")
    assert caught.value.status == 404


def test_a_model_is_waited_for_and_a_refused_one_says_why(client: Either, fake: FakeServer, model_id: str) -> None:
    fake.models[model_id].update(state="checking", summary=None)
    assert client.get_model_graph(model_id).raw == GRAPH
    fake.models[model_id].update(state="refused", refusal=REFUSAL)
    with pytest.raises(billhook.UploadRefused, match="Einsum"):
        client.get_model_graph(model_id)


def test_the_servers_example_is_a_graph() -> None:
    graph = parse(Graph, json.loads(json.dumps(GRAPH_EXAMPLE)))
    assert graph.blocks[0].shortcut == "identity"
    assert graph.blocks[0].reason is None
    with pytest.raises(billhook.ApiError, match="no Graph"):
        parse(Graph, {**GRAPH, "blocks": [{"name": 3}]})


def test_everything_is_printed_in_tables(run: Command, model_id: str) -> None:
    out = run("models", "show", model_id).out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "params: 272474" in lines
    assert (
        "272,474 parameters, 40,813,184 MACs, 784 filters; free to go: 99.5 % of the parameters, 100 % of those of "
        "convolutions"
    ) in lines
    assert "1 of 2 channel groups can be cut; 1 residual blocks, 1 blocks of branches, 0 plain layers" in lines
    assert "layer1.0.conv1 Conv2d 16×32×32 16×32×32 2,304 2,359,296 layer1.0.conv1" in lines
    assert "conv1 16 1 yes, 3 more stay made by conv1, layer1.0.conv2, layer1.1.conv2 and 1 more" in lines
    assert {"carried by bn1", "read by layer1.0.conv1"} <= set(lines)
    assert "fc 10 1 frozen made by fc" in lines
    assert "layer1.0 residual 16×32×32 16×32×32 4,672 4,718,592 identity - - yes" in lines
    assert "mixed branches 16×8×8 4×8×8 20 30 - - outer yes" in lines
    assert "b2 branch 10 15 no: its channels go together with those of fc2" in " ".join(lines)
    assert "output linear the channels of a model output stay fc" in lines
    titles = [line for line in lines if line.startswith(("Layers", "Channel groups:", "Blocks,", "Frozen:"))]
    assert len(titles) == 4


def test_what_was_added_is_told_in_two_lines(run: Command, fake: FakeServer, model_file: Path) -> None:
    fake.models[run("models", "add", model_file, "--json").document["id"]]["summary"]["graph"] = GRAPH["totals"]
    out = run("models", "add", model_file).out
    assert "1 of 2 channel groups can be cut; " in out
    assert "free to go: 99.5 % of the parameters" in out
    assert "free_params_share" not in out


def test_sections_are_chosen(run: Command, model_id: str) -> None:
    out = run("models", "show", model_id, "--blocks", "--frozen").out
    assert "Blocks, branches and plain layers" in out
    assert "Frozen: what may not be removed, and why" in out
    assert "Channel groups:" not in out
    assert "Layers\n" not in out
    assert "params:" not in out
    assert run("models", "show", model_id, "--groups", "--json").document == {"groups": GRAPH["groups"]}
    assert run("models", "show", model_id, "--layers", "--frozen", "--json").document == {
        "layers": GRAPH["layers"], "frozen": GRAPH["frozen"],
    }  # fmt: skip
    whole = run("models", "show", model_id, "--json").document
    assert (whole["id"], whole["graph"]) == (model_id, GRAPH)


def test_a_model_without_a_graph_is_shown_all_the_same(run: Command, fake: FakeServer, model_id: str) -> None:
    fake.has_graphs = False
    shown = run("models", "show", model_id)
    assert (shown.code, "params: 272474" in shown.out) == (0, True)
    assert "it is not_found" in shown.err
    assert run("models", "show", model_id, "--blocks").code == 2
    fake.failures[f"GET /v1/models/{model_id}/graph"].append((500, {}))
    assert run("models", "show", model_id).code == 1


def test_a_refused_model_is_shown_with_the_reason(run: Command, fake: FakeServer, model_id: str) -> None:
    fake.models[model_id].update(state="refused", refusal=REFUSAL, summary=None)
    shown = run("models", "show", model_id)
    assert (shown.code, "Einsum is not on the list" in shown.out) == (0, True)
    sections = run("models", "show", model_id, "--layers")
    assert (sections.code, "Einsum is not on the list" in sections.err) == (2, True)


def test_long_lists_of_layers_are_short() -> None:
    assert names([]) == "-"
    assert names(["a", "b", "c"]) == "a, b, c"
    assert names(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
