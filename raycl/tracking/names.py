"""Names in MLflow: which step a metric is drawn over, legal names, tags, params and descriptions.

The part of a metric's name before the last ``/`` is its section of charts in MLflow.
"""

from __future__ import annotations

import itertools
import json
import math
import posixpath
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import lru_cache
from numbers import Real
from typing import Any, TypeVar

from raycl.tracking import views
from raycl.tracking.records import SweepRecord
from raycl.tracking.words import NO_PICTURES, WORDS

KEY_LIMIT, PARAM_LIMIT, TAG_LIMIT, ERROR_LIMIT = 250, 6000, 5000, 5000

T = TypeVar("T", bound=Hashable)

_WITHIN = ("train/", "time/", "curve/")
_SECTIONS = (*_WITHIN, "eval/", "validation/", "cost/", "method/")
_ILLEGAL = re.compile(r"[^\w.\-: /]")


def axis(name: str) -> str | None:
    """The field of a row that is the step of this metric; None if the field is no metric.

    ``progress`` (epochs over the whole stream, or emulator frames over all games) for what changes
    within a task, ``tasks_done`` (1...T) for what is measured at the end of each task.

    >>> axis("train/loss"), axis("eval/class/average_accuracy"), axis("phase")
    ('progress', 'tasks_done', None)
    """
    if not name.startswith(_SECTIONS):
        return None
    within = name.startswith(_WITHIN) or name == "validation/accuracy_current"
    return "progress" if within else "tasks_done"


def metric_name(name: str) -> str:
    """A name MLflow accepts: other characters become ``_``, empty and dotted path parts go.

    >>> metric_name("eval/class/acc[top=1]")
    'eval/class/acc_top_1_'
    """
    parts = [part for part in _ILLEGAL.sub("_", name).split("/") if part.strip(". ")]
    return posixpath.join(*parts)[:KEY_LIMIT] if parts else "_"


def file_name(name: str) -> str:
    """A name of a file: other characters than ASCII letters, digits, ``-``, ``.`` become ``_``.

    >>> file_name("bits per weight")
    'bits_per_weight'
    """
    return re.sub(r"[^\w.\-]", "_", name, flags=re.ASCII).lstrip(".")[:KEY_LIMIT] or "_"


def distinct(things: Iterable[T], name: Callable[[T], str]) -> dict[T, str]:
    """Name each of several things, with ``-2``, ``-3``, ... behind a name that is taken.

    >>> distinct(["a b", "a_b"], file_name)
    {'a b': 'a_b', 'a_b': 'a_b-2'}
    """
    found: dict[T, str] = {}
    for thing in dict.fromkeys(things):
        first = name(thing)
        names = itertools.chain([first], (f"{first}-{n}" for n in itertools.count(2)))
        found[thing] = next(one for one in names if one not in found.values())
    return found


@lru_cache(maxsize=4096)
def _place(name: str) -> tuple[str | None, str]:
    return axis(name), metric_name(name)


def points(row: Mapping[str, Any]) -> dict[str, tuple[int, dict[str, float], int]]:
    """Sort a trial's row onto the axes.

    Args:
        row: The flat row of ``raycl.training.run.Run.advance``. Values that end a task count only
            when ``at_task_end`` is true. An axis whose step the row does not have is left out.

    Returns:
        axis -> (step, finite values by legal name, how many values were not finite)
    """
    values: dict[str, dict[str, float]] = {"progress": {}, "tasks_done": {}}
    nonfinite = dict.fromkeys(values, 0)
    for key, value in row.items():
        place, name = _place(key)
        if place is None or not isinstance(value, Real):
            continue
        number = float(value)
        if math.isfinite(number):
            values[place][name] = number
        else:
            nonfinite[place] += 1
    if not row.get("at_task_end"):
        del values["tasks_done"]
    return {
        place: (int(row[place]), found, nonfinite[place])
        for place, found in values.items()
        if place in row and (found or nonfinite[place])
    }


def params(config: Mapping[str, Any]) -> dict[str, str]:
    """Flatten a configuration: keys joined by dots, values as they would stand in the YAML file.

    What is not set (null) is left out.

    >>> params({"method": {"lam": 1e-05}, "hidden": [400, 400], "augment": None})
    {'method.lam': '1e-05', 'hidden': '[400, 400]'}
    """
    flat: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= {f"{key}.{inner}": text for inner, text in params(value).items()}
        elif value is not None:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[str(key)] = text[:PARAM_LIMIT]
    return {metric_name(key): text for key, text in flat.items()}


def tags(given: Mapping[str, Any]) -> dict[str, str]:
    """Tags as MLflow takes them; a key without a dot gets the prefix ``raycl.``."""
    return {
        (key if "." in key else f"raycl.{key}")[:KEY_LIMIT]: str(value)[:TAG_LIMIT]
        for key, value in given.items()
        if value is not None
    }


def error_tags(error: str) -> dict[str, str]:
    """Why a run failed: as a tag, and as the description on its page."""
    what, _, rest = error[:ERROR_LIMIT].partition("\n")
    note = f"**Failed:** {what}" + (f"\n\n```\n{rest.strip()}\n```" if rest.strip() else "")
    return {"raycl.error": error[:ERROR_LIMIT], "mlflow.note.content": note}


def quoted(text: str) -> str:
    """A string in MLflow's filter language."""
    return "'" + text.replace("'", "\\'") + "'"


def trials_filter(sweep_id: str) -> str:
    """The filter that finds every run of one execution, its parent included."""
    return f"tags.`raycl.sweep_id` = {quoted(sweep_id)}"


def sweep_note(sweep: SweepRecord) -> str:
    """The description of the parent run, in Markdown."""
    return f"""{sweep.note}

**Its trials** are the runs below it in the table. To see only them, paste into the search box:

```
{trials_filter(sweep.sweep_id)} and tags.`raycl.kind` != 'sweep'
```
"""


def experiment_note(sweep: SweepRecord) -> str:
    """The description of the experiment, in Markdown."""
    words, titles = WORDS[sweep.kind], views.TITLES
    search = f"""
*Views → {titles[views.SEARCH]}* has the trials of the search, the best one first; its charts show
which values do well."""
    return f"""{sweep.note}

**To compare methods** choose *Views → {titles[views.METHODS]}* at the top right: a row for each
method, which unfolds to its seeds. The chart button draws lines, each a mean over seeds with its
spread. {words.axes}{search if views.searched(sweep) else ""}
*Views → {titles[views.TRIALS]}* has the rest: searches, stopped and failed trials.
MLflow loads 100 runs at a time, and a mean is over those: press *Load more* until all are there.

**To compare runs** tick them and press *Compare*. A box plot of `label` against a metric shows
every seed; *Show diff only* leaves the params that differ.

To see fewer runs, paste for example into the search box:

```
tags.`raycl.method` = 'finetune' and tags.`raycl.seed` = '0'
```

{words.files if sweep.pictures else NO_PICTURES} The table with
intervals: `raycl report {sweep.name}`.
"""
