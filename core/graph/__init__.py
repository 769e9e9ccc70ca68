"""The canonical graph: importers, channel groups, cuts, the proofs that they are exact, and ONNX export."""
