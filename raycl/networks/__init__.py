"""Backbones: images in, features out. One file each."""
