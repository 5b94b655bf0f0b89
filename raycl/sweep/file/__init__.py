"""The sweep file: read, explained where it is wrong, and checked; without data and without Ray.

The way through is ``source`` (text), ``model`` (blocks), ``check``; ``spec.load`` goes all of it.
"""
