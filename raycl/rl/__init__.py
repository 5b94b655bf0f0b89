"""Reinforcement learning: methods that learn Atari games one after another, on RLlib."""
