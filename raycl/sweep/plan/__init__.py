"""Expands a sweep into its trials, finished and hashed; without Ray.

A ``plan`` is one trial; ``expand`` makes all of a sweep; ``check_data`` tries them on the data.
"""
