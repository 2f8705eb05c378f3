"""From a job's options dataclass to its command line: flags, grouped help, and errors that name the flag."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import click

from spa import __version__
from spa.options import Spec, UsageError, bounds_text, build, specs

IGNORED_FLAGS = {
    "--pool": True,
    "--verb": True,
    "--scratch_dir": True,
    "--keep_free_scratch": True,
    "--free_gpu_memory": True,
    "--failsafe_threshold": True,
    "--dont_combine_weights_via_disc": False,
    "--no_parallel_disc_io": False,
    "--preread_images": False,
    "--reuse_scratch": False,
    "--keep_scratch": False,
    "--onthefly_shifts": False,
    "--auto_refine": False,
    "--extract": False,
    "--split_random_halves": False,
}
"""RELION flags that change nothing here, and whether each takes a value."""

_METAVARS = {str: "TEXT", int: "INT", float: "NUMBER"}


class JobCommand(click.Command):
    """One job as a click command, derived from `module.Options` and running `module.run(options, job)`."""

    def __init__(self, name: str, module: ModuleType) -> None:
        self.module = module
        self.specs = specs(module.Options)
        known = {flag for spec in self.specs for flag in _all_flags(spec)}
        ignored = [_ignored_parameter(flag) for flag in IGNORED_FLAGS if flag not in known]
        version = click.Option(["--version"], is_flag=True, expose_value=False, is_eager=True, callback=_show_version)
        super().__init__(
            name,
            params=[*map(_parameter, self.specs), *ignored, version],
            callback=self._run,
            help=module.__doc__,
            context_settings={"help_option_names": ["--help", "-h"], "max_content_width": 110},
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, with our words for an unknown flag and for a stray argument."""
        given = [*args]
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            known = [flag for spec in self.specs for flag in _all_flags(spec)]
            guess = nearest(error.option_name, [*known, "--help"])
            raise click.UsageError(f"unknown flag {error.option_name}: did you mean {guess}?", ctx) from None
        except click.UsageError:
            # click names all that is left over; where a shell has expanded a pattern, that is a whole folder
            files = [word for word in given if not word.startswith("-") and Path(word).exists()]
            if len(files) > 2:
                text = f"{files[1]}: a flag takes one value; put a pattern in quotes, as '*{Path(files[1]).suffix}'"
                raise click.UsageError(text, ctx) from None
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The flags under the headings of their groups, each with unit, bounds and default."""
        for group in dict.fromkeys(spec.group for spec in self.specs):
            rows = [(flag_text(spec), help_text(spec)) for spec in self.specs if spec.group == group]
            if group == "Compute":
                rows += [("--help", "Show this text"), ("--version", "Show the version")]
            with formatter.section(group):
                formatter.write_dl(rows, col_max=34)

    def _run(self, **values: Any) -> int:
        from spa.job import Job  # here, so that `spa --help` does not wait for NumPy and Numba

        ignored = [flag for flag in IGNORED_FLAGS if values.pop(_ignored_name(flag), None) not in (None, False)]
        given = {name: value for name, value in values.items() if value is not None and value != ()}
        try:
            options = build(self.module.Options, given, str(self.name))
        except UsageError as error:
            raise click.UsageError(str(error), click.get_current_context()) from None
        arguments: list[str] = click.get_current_context().find_root().obj
        with Job(str(self.name), options, ["spa", *arguments]) as job:
            if ignored:
                job.warn(f"{', '.join(ignored)}: accepted, changes nothing here")
            self.module.run(options, job)
        return 0


def nearest(word: str, known: Iterable[str]) -> str:
    """The known word closest in spelling to `word`."""
    return difflib.get_close_matches(word, list(known), n=1, cutoff=0.0)[0]


def flag_text(spec: Spec) -> str:
    """The left column of the help: flags and what they take."""
    if spec.type is bool:
        return " / ".join(_all_flags(spec))
    flags = ", ".join(spec.flags)
    metavar = "|".join(spec.choices) if spec.choices else _METAVARS[spec.type]
    if spec.role in ("input", "file"):
        metavar = "FILE"
    elif spec.role:
        metavar = spec.role.upper()
    return f"{flags} {f'[{metavar}]' if spec.value_if_bare is not None else metavar}"


def help_text(spec: Spec) -> str:
    """The right column of the help: meaning, unit, bounds, default."""
    facts = [spec.unit, bounds_text(spec.bounds), "repeatable" if spec.repeated else ""]
    facts.append("required" if spec.required else f"default {spec.default_text}")
    return f"{spec.help} [{'; '.join(fact for fact in facts if fact)}]"


def _all_flags(spec: Spec) -> tuple[str, ...]:
    """The flags of an option, with `--no_x` for a switch that is on by default."""
    if spec.type is bool and spec.default is True:
        return (*spec.flags, *(f"--no_{flag[2:]}" for flag in spec.flags))
    return spec.flags


def _parameter(spec: Spec) -> click.Option:
    if spec.type is bool:
        declaration = [f"{flag}/--no_{flag[2:]}" if spec.default is True else flag for flag in spec.flags]
        return click.Option([spec.name, *declaration], is_flag=True, default=None)
    bare: dict[str, Any] = {}
    if spec.value_if_bare is not None:
        bare = {"is_flag": False, "flag_value": spec.value_if_bare}
    kind = _Converted(spec)
    return click.Option([spec.name, *spec.flags], type=kind, multiple=spec.repeated, default=None, **bare)


def _show_version(ctx: click.Context, parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"spa {__version__}")
        ctx.exit()


def _ignored_name(flag: str) -> str:
    return f"ignored_{flag[2:]}"


def _ignored_parameter(flag: str) -> click.Option:
    takes_value = IGNORED_FLAGS[flag]
    kind = str if takes_value else None
    return click.Option([_ignored_name(flag), flag], hidden=True, default=None, is_flag=not takes_value, type=kind)


class _Converted(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic from click 8.3 on
    """Text to the type of an option; bounds and choices are the dataclass's to check."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.name = spec.type.__name__

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """`value` as the option's type; a usage error naming the flag if it is not one."""
        try:
            return self.spec.type(value)
        except ValueError:
            self._refuse(value, ctx)

    def _refuse(self, value: Any, ctx: click.Context | None) -> NoReturn:
        wanted = "a whole number" if self.spec.type is int else "a number"
        raise click.UsageError(f"{self.spec.flags[0]} {value}: expected {wanted}", ctx)
