"""Pruning methods: one function, one file each. They do not import each other; `core.pipeline.METHODS` names them."""
