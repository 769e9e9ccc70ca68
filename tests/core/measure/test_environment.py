from __future__ import annotations

import json

from core.measure.environment import environment


def test_the_environment_is_json_and_names_the_machine_and_the_versions() -> None:
    found = environment("cpu", threads=2)
    assert json.loads(json.dumps(found)) == found
    assert {"numpy", "onnx", "torch"} <= found["packages"].keys()
    assert found["cpu_model"]
    assert found["cpu_cores_usable"] >= 1
    assert found["memory_bytes"] > 2**28
    assert "CPUExecutionProvider" in found["execution_providers"]
    assert (found["device"], found["device_name"], found["threads"]) == ("cpu", None, 2)
