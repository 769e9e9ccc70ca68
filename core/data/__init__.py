"""Datasets: reading them safely, splitting them once, and handing out preprocessed batches."""
