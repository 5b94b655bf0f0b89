"""A linear head on the features of a frozen transformer, without any prompt."""

from __future__ import annotations

from torch import Tensor

from raycl.methods._prompted import Answer, Learner, PromptMethod, Prompts
from raycl.nn.prompted_vit import Encoding


class Nothing(Learner):
    """A learner without any prompts."""

    def prompts(self, query: Tensor, task: int | None) -> tuple[Prompts, None]:
        """See ``Learner.prompts``."""
        return {}, None


class NoPrompt(PromptMethod):
    """Only the head is trained: what every prompt has to beat.

    Paper:
        The baseline that users of Wang et al., "Learning to Prompt for Continual Learning", CVPR
        2022, arXiv 2112.08654, measured (issue 35 of its code): prompts switched off.

    Loss: cross-entropy over the classes of the task, as for the methods with prompts. The features
    of an image are its query, and are computed once where images are not augmented and the network
    comes with its weights, as far as ``evaluate.cache_mb`` goes.

    Departures: ``aux_loss_scale`` changes nothing here. ``anchor: first_task`` is not in that code.
    """

    learner = Nothing
    frozen_alone = True

    def answer(
        self, images: Tensor, frozen: Tensor | None, task: int | None = None, keep: object = ()
    ) -> Answer:
        """See ``PromptMethod.answer``: the head on the query; there are no tokens."""
        query = self.query(images, frozen)
        none = query.new_empty(len(query), 0, query.shape[1])
        return Answer(self.student.head(query).float(), None, Encoding(query, none, none, {}), {})
