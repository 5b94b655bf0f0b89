"""Distil: learning without forgetting from an older and usually weaker network."""

from __future__ import annotations

from raycl.methods._distilled import Distilled


class Distil(Distilled):
    """Smoothed cross-entropy, and all outputs held to the last task's network on the new images.

    Paper:
        "Distil" in Madaan et al., "Heterogeneous Continual Learning", CVPR 2023, arXiv 2306.08593,
        and its code; after Li & Hoiem, "Learning without Forgetting", ECCV 2016, arXiv 1606.09282.

    Loss of task t > 1, f the student, g the network that task t - 1 ended with, in eval mode:
        L = LS(f(x), y) + alpha KD(f(x), g(x))
        LS: cross-entropy with the target (1 - eps) one-hot + eps / C over all C outputs
        KD(s, r) = T^2 mean_i KL(softmax(r_i / T) || softmax(s_i / T)) over all C outputs

        Both see the same augmented images. The first task has LS alone. No output is masked, also
        of classes that no task has had yet: set ``class_outputs: all`` in the benchmark to measure
        it as that paper does.

    Symbols:
        alpha: ``alpha``, 3 on all three data sets of that code. eps: ``label_smoothing``. T:
        ``temperature``. g: the module ``teacher``. C: the outputs of all tasks, ``outputs: all``.

    What to beware of: the least loss is reached where the student says (one-hot + alpha q) /
        (1 + alpha), q the teacher's answer, which never holds the new classes. With alpha 3 the
        newest task loses in the class-incremental readout, and in short runs falls below chance.

    Departures from the paper:
        * Read in its code, not in the paper.
    Departures from that code:
        * None in the loss. Its recipe is ``train: {epochs: 200, batch_size: 32, lr: 0.03, augment:
          hcl, select: seen_accuracy, select_tolerance: 0.2}``: plain SGD at a constant rate, for
          momentum, weight decay and schedule of its files are read by nothing.
        * Where the network stays, its student keeps its optimiser, too; here each task starts a new
          one, which is the same without momentum.
        * The accuracy on a task before it is learnt is that of the network of the task before; that
          code measures the new network, untrained, where it changes.
    """
