"""Trials on Ray: the cluster, Tune, the trial's process, and how all of it is ended.

Nothing but ``run`` and the commands above the sweep come in here.
"""
