"""Streams whose images bring along the values that the method computes once per image."""

from __future__ import annotations

from torch import Tensor

from raycl.benchmarks.base import Stream, TaskData
from raycl.datasets.examples import Examples
from raycl.datasets.frozen import BATCH, TRAINING, WHOLE, Budget, FrozenSet
from raycl.methods.base import Method


def with_frozen(stream: Stream, method: Method, cache_mb: float, augmented: bool) -> Stream:
    """The stream with ``Method.frozen_values`` of its images, if the method has any.

    Args:
        stream: The stream; its images are read as before.
        method: May be in any mode; it is in that mode again after each call.
        cache_mb: Memory for all values together, in units of 10^6 bytes.
        augmented: Whether training images change from epoch to epoch, so that no value is kept.
    """
    cls = type(method)
    if cls.frozen_values is Method.frozen_values or not method.fixed:
        return stream
    budget, at_once = Budget(cache_mb), stream.info.at_once(BATCH)

    def function(images: Tensor) -> Tensor:
        training = method.training
        method.eval()
        values = method.frozen_values(images)
        method.train(training)
        return values

    def wrapped(examples: Examples, training: bool = False) -> Examples:
        if cls.frozen_training and not training:
            return examples
        rank = TRAINING if training else WHOLE
        asks = None if training and augmented and not cls.frozen_training else rank
        return FrozenSet(examples, function, budget, cls.frozen_alone, at_once, asks)

    data = [
        TaskData(
            wrapped(one.train, training=True),
            None if one.validation is None else wrapped(one.validation),
            wrapped(one.test),
        )
        for one in stream.data
    ]
    return Stream(stream.info, tuple(data))
