"""Continual-learning experiments as sweeps on Ray, tracked in MLflow."""

__version__ = "0.3.0.dev0"
