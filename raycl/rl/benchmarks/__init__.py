"""Sequences of games, one file each."""
