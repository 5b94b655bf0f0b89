"""Backbones, which turn images into features; one file each."""
