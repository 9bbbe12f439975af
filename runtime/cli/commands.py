"""The commands as one program, and what becomes of an exception."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

import typer
from typer.core import TyperGroup

from . import (
    check,
    demo,
    evaluate,
    explain,
    export,
    functa,
    generate,
    importing,
    ir,
    play,
    prepare,
    sample,
    schema,
    show,
    train,
    verify,
)

FAULT = 70
"""Exit code of a fault of planform itself (EX_SOFTWARE of sysexits.h); 0 is success, 1 means findings, 2 a user's
mistake."""

DEBUG = "PLANFORM_DEBUG"

_ClickException: type[Exception] = typer.BadParameter.__mro__[2]  # type: ignore[assignment]
"""Wrong usage, which the library shows itself; newer versions of it don't use the click package's own class."""


class Commands(TyperGroup):
    """Turns exceptions into sentences and exit codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (typer.Exit, _ClickException):
            raise
        except (KeyboardInterrupt, typer.Abort):
            print("stopped", file=sys.stderr)
            code = 130
        except BrokenPipeError:  # `planform ir .. | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 0
        except Exception as error:
            code = explain_exception(error)
        raise typer.Exit(code)


def explain_exception(error: Exception) -> int:
    """Says on standard error what happened. Returns the exit code."""
    from planform.spec import SpecError

    from ..errors import UserError
    from .console import print_diagnostics, print_error

    if isinstance(error, SpecError):
        print_diagnostics(error.diagnostics)
        return 1
    if isinstance(error, UserError):
        print_error(error.message, error.help)
        return error.exit_code
    place = traceback.extract_tb(error.__traceback__)[-1]
    print_error(
        f"this is a fault of planform, not of your spec: {type(error).__name__}: {error}",
        f"please report it with the spec and the command; {DEBUG}=1 shows where it happened",
    )
    if os.environ.get(DEBUG, "0") not in ("", "0"):
        traceback.print_exception(error)
    else:
        print(f"  at {os.path.basename(place.filename)}:{place.lineno} in {place.name}", file=sys.stderr)
    return FAULT


app = typer.Typer(
    cls=Commands,
    name="planform",
    help="One spec, one typed graph: check it, train it on replicas, export it, verify every form against the others.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
)


def _version(wanted: bool) -> None:
    if wanted:
        from planform import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


for _module in (
    check,
    show,
    ir,
    explain,
    train,
    evaluate,
    importing,
    export,
    prepare,
    verify,
    generate,
    functa,
    sample,
    play,
    schema,
    demo,
):
    _module.add(app)
