"""``raycl gif``: games as they are played from a trial's checkpoints, side by side.

``command`` asks, ``drawing`` plays in Ray's workers; ``clip``, ``sheet``, ``encode`` make pictures.
"""
