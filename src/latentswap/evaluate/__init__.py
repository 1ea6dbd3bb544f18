"""Measuring swaps: pairs of pictures in, figures with definitions out."""
