"""Trials on streams of images: the only supervised loop, its evaluation, its metrics."""
