"""The `spa` command: picks the job, runs it and turns what happened into one line and an exit status."""

from __future__ import annotations

import errno
import sys
import traceback
from collections.abc import Sequence

import click

from spa import __version__
from spa.cli.parser import JobCommand, nearest
from spa.cli.table import JOBS, load, summary
from spa.errors import InputError, Interrupted
from spa.options import UsageError

SUCCESS, WRONG_INPUT, USAGE, INTERRUPTED, BUG = 0, 1, 2, 3, 70
"""Exit statuses; 70 is EX_SOFTWARE of sysexits.h."""

_USERS_ERRNO = {
    getattr(errno, name)
    for name in ("ENOENT", "EACCES", "EPERM", "EROFS", "EISDIR", "ENOTDIR", "ENOSPC", "EDQUOT", "EFBIG")
}


class Spa(click.Group):
    """The group of all jobs, in pipeline order; a job's module is imported only when its name is typed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names of the jobs."""
        return list(JOBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a job; None for an unknown name."""
        return JobCommand(cmd_name, load(cmd_name)) if cmd_name in JOBS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the nearest job named for an unknown one."""
        name = args[0]
        if name not in JOBS:
            what = "flag" if name.startswith("-") else "job"
            known = ["--help", "--version"] if name.startswith("-") else JOBS
            raise click.UsageError(f"unknown {what} {name}: did you mean {nearest(name, known)}?", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The jobs and what each is for, without importing any of them."""
        with formatter.section("Jobs, in the order of a project"):
            formatter.write_dl([(name, summary(name)) for name in JOBS])


@click.command(cls=Spa, context_settings={"help_option_names": ["--help", "-h"], "ignore_unknown_options": True})
@click.version_option(__version__, prog_name="spa", message="%(prog)s %(version)s")
def cli() -> None:
    """Cryo-EM single-particle analysis. `spa JOB --help` shows the flags of a job."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line (without the program's name) and return its exit status."""
    try:
        status = cli.main(list(arguments), prog_name="spa", standalone_mode=False, obj=list(arguments))
        return status if isinstance(status, int) else SUCCESS
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else str(error))
        return USAGE
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "spa"
        return _fail(f"{error.format_message()}  (see {command} --help)", USAGE)
    except UsageError as error:
        return _fail(str(error), USAGE)
    except InputError as error:
        return _fail(str(error), WRONG_INPUT)
    except Interrupted as error:
        return _fail(str(error), INTERRUPTED)
    except (KeyboardInterrupt, click.Abort):
        return _fail("interrupted before the next safe point; start again with the same command", INTERRUPTED)
    except OSError as error:
        if error.errno in _USERS_ERRNO:
            return _fail(f"{error.filename or 'output'}: {error.strerror}", WRONG_INPUT)
        return _bug(error)
    except Exception as error:
        return _bug(error)


def _fail(message: str, status: int) -> int:
    click.echo("error: " + " ".join(message.splitlines()), err=True)
    return status


def _bug(error: Exception) -> int:
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = [*getattr(error, "__notes__", []), f"at {last.filename}:{last.lineno}"][0]
    return _fail(f"a bug in spa, please report it: {type(error).__name__}: {error} ({where})", BUG)


def main() -> None:
    """Entry point of the console script."""
    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
