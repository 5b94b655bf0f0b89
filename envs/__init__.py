"""Gymnasium environments for sequential Atari. Knows nothing of raycl or Ray."""
