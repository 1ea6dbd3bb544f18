"""Generators of pictures from latent codes."""
