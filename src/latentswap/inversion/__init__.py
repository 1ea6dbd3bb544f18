"""Photograph → W+ code."""
