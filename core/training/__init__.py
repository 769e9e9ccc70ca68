"""Training, evaluation and recalibration of a Network."""
