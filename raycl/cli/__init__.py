"""The command line: parse, call one function, print. Heavy modules are imported where needed."""

from __future__ import annotations

import os
import sys

import typer

from raycl import secrets
from raycl.cli import data, running, showing
from raycl.errors import NOT_OURS, UserError, printable
from raycl.terminal import steady

app = typer.Typer(
    help="Continual-learning experiments as sweeps on Ray, tracked in MLflow.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    add_completion=False,
)
app.add_typer(running.app)
app.add_typer(showing.app)
app.add_typer(data.app, name="data")
app.add_typer(running.bench_app, name="bench")


def main() -> None:
    """Entry point. Exit codes: see ``raycl run --help``."""
    steady()
    job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if job:
        secrets.unpack()
    secrets.leave_the_command_line()
    secrets.guard_output()
    try:
        if job:
            from raycl.sweep.execution.cluster import at_home

            at_home()
        app()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in NOT_OURS:
            raise
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except SystemExit:
        raise
    except BaseException as error:
        running.leave_if_ended_by(error)
        raise
