"""Pruning methods: one function, one file each. They do not import each other; `core.steps.METHODS` names them."""
