"""The only supervised loop, its evaluation, checkpoints and metrics."""
