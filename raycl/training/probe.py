"""The linear probe: a classifier fitted on the features that the frozen network has of images.

It shows how much of the old tasks can still be read off the features, whatever has become of the
method's own outputs. It sees the training data of all tasks so far, which the method may not see;
so it is a diagnostic, and nothing is ever selected by it. Its time is not counted as a cost; memory
that it leaves in use is, in the tasks that follow.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycl.benchmarks.base import Stream, TaskData
from raycl.datasets.examples import Examples
from raycl.errors import UserError
from raycl.methods.base import Method
from raycl.training.config import PROBE, TrialConfig
from raycl.training.evaluation import BATCH, Evaluator
from raycl.training.matrices import Matrices
from raycl.trial.matrix import Rows

ITERATIONS = 1000
"""Steps of the optimiser at most; more are hardly ever needed."""
TOLERANCE = 1e-5
"""Largest entry of the gradient at which it stops. With 100 classes scikit-learn's own, 1e-4, is
reached after a few steps, and accuracy is 0.3 points from where it ends."""

Array = NDArray[np.float64]


class Probe:
    """Fits linear classifiers at the end of tasks and measures them, where a trial asks for that.

    Args:
        config: The trial; ``evaluate.probe`` and the number of threads count.
        stream: Images of all tasks.
        method: The method whose features are read.
        evaluator: How the method itself is measured; the device and ``top_k`` are the same.

    Attributes:
        rows: Readouts of the probe, such as ``probe/class``, to which rows of their matrices are
            measured; empty without a probe.

    Raises:
        UserError: A probe is asked for, and the method has no features.
    """

    def __init__(
        self, config: TrialConfig, stream: Stream, method: Method, evaluator: Evaluator
    ) -> None:
        self.config, self.threads = config.evaluate.probe, config.threads
        self.stream, self.method = stream, method
        self.rows: dict[str, Rows] = {}
        if self.config is None:
            return
        if not has_features(type(method)):
            what = f"{type(method).__name__} has no features to fit a linear probe on"
            raise UserError("evaluate.probe", what, "define Method.features")
        readouts = probed(stream.info.readouts, type(method))
        every: Rows = "all" if self._each_task else "last"
        self.rows = {PROBE + readout: every for readout in readouts}
        self.evaluator = Evaluator(stream.info, readouts, evaluator.device, evaluator.top_k)

    @property
    def _each_task(self) -> bool:
        return self.config is not None and self.config.every == "task"

    def measure(self, index: int, matrices: Matrices) -> None:
        """Fill row ``index`` of the probe's matrices, if it is one that is measured.

        Args:
            index: The task that was learnt last; the method is in eval mode.
            matrices: Matrices of the run.
        """
        if self.config is None or not (self._each_task or index + 1 == matrices.tasks):
            return
        data = self.stream.data[: index + 1]
        predictor = self._fit(data, self.config.l2)
        for i, one in enumerate(data):
            accuracy = self.evaluator.accuracy(predictor, one.test, i, len(data))
            matrices.fill("test", index, i, {PROBE + r: value for r, value in accuracy.items()})

    def _fit(self, data: Sequence[TaskData], l2: float) -> Probed:
        """Fit classifiers on the training data of these tasks, the first ones of the stream.

        Where features depend on the task id there is one for images whose task is unknown, and one
        for images that come with their own.
        """
        method, labels = self.method, torch.cat([one.train.labels for one in data])
        kinds = {method.uses_task_id and r == "task" for r in self.evaluator.readouts}
        classifiers = {}
        for known in kinds:
            features = [
                _features(method, one.train, i if known else None) for i, one in enumerate(data)
            ]
            classifiers[known] = fit_linear(np.concatenate(features), labels, l2, self.threads)
        return Probed(method, self.stream.info.num_outputs, classifiers)


def has_features(method: type[Method]) -> bool:
    """Whether a method has features that a probe can read."""
    return method.features is not Method.features


def probed(defined: Sequence[str], method: type[Method]) -> tuple[str, ...]:
    """Readouts under which the probe is asked: ``class``, else ``domain``, and ``task``.

    Args:
        defined: Readouts that the benchmark has.
        method: If its features depend on the task id and it cannot do without, only ``task``.
    """
    if method.uses_task_id and not method.settings & {"class", "domain"}:
        return ("task",)
    return tuple(r for r in defined if r != "domain" or "class" not in defined)


@dataclass(frozen=True)
class Linear:
    """A linear classifier of standardised features.

    Attributes:
        mean: Means of the features it was fitted on, float64 (F,).
        scale: Their standard deviations, likewise; 1 where that is 0.
        weight: float64 (K, F).
        bias: float64 (K,).
        classes: int64 (K,), output ids.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    classes: Tensor

    def scores(self, features: Tensor, outputs: int) -> Tensor:
        """Scores of all outputs, float64 (B, outputs); minus infinity for a class never seen."""
        scores = ((features.double() - self.mean) / self.scale) @ self.weight.T + self.bias
        unknown = scores.new_full((len(scores), outputs), -torch.inf)
        return unknown.index_copy_(1, self.classes, scores)


@dataclass(frozen=True)
class Probed:
    """Linear classifiers on a method's features, which the evaluator asks in its place.

    Attributes:
        method: The method whose features they read.
        outputs: Number of outputs of the stream.
        classifiers: Classifiers for images whose task is unknown (``False``) and known
            (``True``); without
            ``True`` if features do not depend on the task id.
    """

    method: Method
    outputs: int
    classifiers: Mapping[bool, Linear]

    @property
    def uses_task_id(self) -> bool:
        """See ``Method``."""
        return self.method.uses_task_id

    def logits(self, images: Tensor, task_id: int | None) -> Tensor:
        """See ``Method.logits``."""
        classifier = self.classifiers[task_id is not None]
        return classifier.scores(self.method.features(images, task_id), self.outputs)


def fit_linear(features: Array, labels: Tensor, l2: float, threads: int = 1) -> Linear:
    """Multinomial logistic regression by L-BFGS, as scikit-learn has it; the same every time.

    The mean cross-entropy + ``l2``/2 |w|^2 is minimised, where w are the weights without the bias.
    (For two classes scikit-learn has one vector w, the difference of theirs.)

    Args:
        features: (N, F); overwritten.
        labels: int64 (N,), output ids, on the device that the classifier will be on.
        l2: Weight decay.
        threads: CPU threads.
    """
    # imported here, because the imports take a second together
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    scaler = StandardScaler(copy=False)
    features = scaler.fit_transform(features)
    known = labels.cpu().numpy()
    classes = np.unique(known)
    weight, bias = np.zeros((len(classes), features.shape[1])), np.zeros(len(classes))
    if len(classes) > 1:
        c = 1 / (l2 * len(features))
        model = LogisticRegression(C=c, tol=TOLERANCE, max_iter=ITERATIONS)
        with threadpool_limits(threads), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, known)
        weight, bias = model.coef_, model.intercept_
        if len(classes) == 2:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.append(-bias, bias) / 2
    fitted = (scaler.mean_, scaler.scale_, weight, bias, classes)
    return Linear(*(torch.from_numpy(x).to(labels.device) for x in fitted))


@torch.inference_mode()
def _features(method: Method, examples: Examples, task_id: int | None) -> Array:
    """The features of a set, float64 (N, F); images are as they are, without augmentation."""
    batches = examples.batches(method.context.stream.at_once(BATCH))
    features = [method.features(batch.images, task_id).double().cpu() for batch in batches]
    return torch.cat(features).numpy()
