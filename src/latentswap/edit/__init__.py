"""Editing faces by their codes: directions in W+, style mixing, interpolation."""
