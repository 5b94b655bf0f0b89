"""A sweep, from its file to its table, in five wings; each imports only those before it.

``kinds`` (images and games), ``file`` (read and checked), ``plan`` (its trials), ``record``
(what is left on disk), ``execution`` (on Ray); then ``printed`` (the table) and ``run``, which is
``raycl run`` and ``raycl resume``.
"""
