"""Trials on sequences of Atari games: methods that learn them one after another, on RLlib."""
