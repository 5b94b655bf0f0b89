"""Fine-tuning: train on each task in turn and protect nothing."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from raycl.methods.base import Classifier, Context


class Finetune(Classifier):
    """The lower bound: plain training on the current task only.

    Paper:
        None of its own. McCloskey & Cohen, "Catastrophic Interference in Connectionist Networks:
        The Sequential Learning Problem", Psychology of Learning and Motivation 24, 1989, describes
        what it shows. It is "Base" in Smith et al., "Always Be Dreaming: A New Approach for
        Data-Free Class-Incremental Learning", ICCV 2021, arXiv 2106.09701 (``outputs: seen``), and
        ``sgd`` in the code of Shi et al., "Continual Learning via Bit-Level Information
        Preserving", CVPR 2021, arXiv 2105.04444 (``outputs: task``).

    Loss:
        L = CE(z[outputs], y), the mean over the batch; with ``label_smoothing`` eps the target is
        (1 - eps) one-hot + eps / n, n the number of ``outputs``: the lower bound of arXiv
        2306.08593 (HCL) with 0.1 and ``outputs: all``.

    Symbols:
        n_seen, the width of the softmax in arXiv 2106.09701: ``outputs: seen``.
        h_t, the head of task t in arXiv 2105.04444: the rows of one linear layer that belong to
        task t, with ``outputs: task``.

    Departures:
        * Optimiser, schedule and selection of an epoch are the sweep file's ``train`` block for
          every method alike; the two papers' own recipes are not built in.
        * Separate heads are rows of one linear layer. Rows outside ``outputs`` get a gradient of
          exactly zero, where separate heads get none, so a weight decay, if set, still shrinks them
          (as it does in the authors' code of arXiv 2106.09701). Without weight decay they keep
          every bit.
    """

    class Config(Classifier.Config):
        """Options of fine-tuning."""

        label_smoothing: float = Field(
            0.0, ge=0, lt=1, description="share of the target that is spread over all outputs"
        )

    any_network = True

    def __init__(self, config: Any, context: Context) -> None:
        super().__init__(config, context)
        self.smoothing = config.label_smoothing
