"""Scores for channels."""
