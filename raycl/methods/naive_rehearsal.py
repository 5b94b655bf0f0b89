"""Naive rehearsal: a random coreset of old images, mixed into the data."""

from __future__ import annotations

from pydantic import Field

from raycl.methods._replay import RandomReplay


class NaiveRehearsal(RandomReplay):
    """Plain training on the current data and, in equal number, on stored images.

    Paper:
        "Naive Rehearsal" in Smith et al., "Always Be Dreaming: A New Approach for Data-Free
        Class-Incremental Learning", ICCV 2021, arXiv 2106.09701, after Hsu et al., "Re-evaluating
        Continual Learning Scenarios: A Categorization and Case for Strong Baselines", NeurIPS 2018
        workshop, arXiv 1810.12488.

    Loss:
        L = CE(z[outputs], y), the mean over a batch of current and stored images.

    Symbols:
        M, the size of the coreset: ``memory_size``, in images over all tasks together; 2000 in
        arXiv 2106.09701. n_seen, the width of the softmax: ``outputs: seen``. Quota of each class:
        ``raycl.nn.memory.quotas``.

    Departures from the code of arXiv 2106.09701:
        * ``replay: batch``, the default: every batch of B current images gets B draws from the
          memory, fresh at every step; as many steps as without memory, and any exemplar may be
          seen. That code lengthens the list of images once per task, with as many draws as there
          are new images: ``replay: list``. It then also picks the next memory from the lengthened
          list, so that duplicates accumulate (1588 of 2000 images are unique after three of five
          tasks, by simulation): ``replay: list_with_duplicates``. See ``RandomReplay``.
        * Where tasks share classes, the quota is per class and task.
        * Stored images are normalised with the statistics of the task they came from, and augmented
          like current ones.
    """

    class Config(RandomReplay.Config):
        """Options of naive rehearsal."""

        memory_size: int = Field(200, ge=1, description="images stored, over all tasks together")

    first_task_of = "finetune"
    any_network = True
