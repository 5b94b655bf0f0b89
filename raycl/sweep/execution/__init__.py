"""Trials on Ray: the cluster, Tune, the trial's process, and how all of it is ended.

Only ``raycl.sweep.run``, ``raycl.sweep.printed`` and the commands above the sweep import from here.
"""
