"""Layers and maths several methods share."""
