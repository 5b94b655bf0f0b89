"""What MLflow's pages say of a sweep, by the kind of its trials."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Words:
    """Names of metrics and sentences that depend on what is learnt.

    Attributes:
        headlines: Metrics that are columns of the view of methods.
        probed: Further ones where a linear probe is fitted.
        validation: Metric of the view of all trials.
        charts: What the search box for charts starts with; without it costs come first.
        axes: What is drawn over what.
        files: What is among the artifacts of a finished run.
    """

    headlines: tuple[str, ...]
    probed: tuple[str, ...]
    validation: str
    charts: str
    axes: str
    files: str


IMAGES = Words(
    headlines=tuple(
        f"eval/{readout}/{metric}"
        for readout in ("class", "task", "domain")
        for metric in ("average_accuracy", "forgetting")
    ),
    probed=tuple(
        f"eval/probe/{readout}/average_accuracy" for readout in ("class", "task", "domain")
    ),
    validation="validation/average_accuracy",
    charts="^eval/",
    axes="""`eval/*` is drawn over tasks learned
(1...T), `train/*` over epochs of the whole stream.""",
    files="""Each finished run has its accuracy matrix under *Artifacts*, drawn in `plots/` and
exact in `results/matrix.json`; so are the distributions of its method, if it has any. Images that
its method makes are in `pictures/`, after each task.""",
)
GAMES = Words(
    headlines=tuple(
        f"eval/normalised/{metric}" for metric in ("average_performance", "forgetting", "retention")
    ),
    probed=(),
    validation="validation/average_performance",
    charts="^(curve/|train/return)",
    axes="""`curve/*` (games scored while the
sequence is learnt) and `train/*` are drawn over emulator frames of the whole sequence, `eval/*`
over games learned (1...T). `score` is raw, `normalised` is percent of the reference.""",
    files="""Each finished run has its matrices of raw and normalised scores under *Artifacts*,
drawn in `plots/`; with the curves they are in `results/matrix.json`.""",
)
WORDS = {"images": IMAGES, "games": GAMES}
NO_PICTURES = """Each finished run has its matrices under *Artifacts*, exact in
`results/matrix.json`; there are no pictures, for the sweep file says
`tracking: {pictures: false}`."""
"""What is said of files instead, where a sweep leaves pictures out."""
