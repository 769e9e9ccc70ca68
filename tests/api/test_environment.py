"""Variables of the environment that the server does not know."""

from __future__ import annotations

from api.serve import unknown_variables


def test_a_variable_that_is_no_setting_is_told() -> None:
    given = ["PATH", "BILLHOOK_KEY", "BILLHOOK_PORT", "BILLHOOK_MEMORY_LIMIT", "BILLHOOK_XYZZY"]
    memory, other = unknown_variables(given)
    assert memory == "BILLHOOK_MEMORY_LIMIT is no setting; is BILLHOOK_MEMORY_LIMIT_BYTES meant?"
    assert other == "BILLHOOK_XYZZY is no setting"
