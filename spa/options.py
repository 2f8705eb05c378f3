"""Options of a job: one frozen dataclass from which the parser, the help text and job.json derive."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import secrets
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

Role = Literal["", "input", "file", "rootname", "folder"]
"""What a path option means: an input (hashed into job.json), or an output file, rootname or folder."""

REQUIRED: Any = dataclasses.MISSING
GROUPS = ("I/O", "Reference", "Particles", "CTF", "Noise", "Optimisation", "Sampling", "Corrections", "Compute")


class UsageError(Exception):
    """A flag is missing, or its value is of the wrong type or out of bounds; the message names the flag."""


def option(
    default: Any = REQUIRED,
    *,
    help: str,
    unit: str = "",
    bounds: tuple[float | None, float | None] = (None, None),
    choices: tuple[str, ...] = (),
    flag: str | tuple[str, ...] | None = None,
    group: str = "I/O",
    role: Role = "",
    default_text: str | None = None,
    value_if_bare: str | None = None,
) -> Any:
    """Declare one field of an options dataclass.

    Parameters
    ----------
    default : the value when the flag is absent, or a function that gives it; without one the flag is required.
    help, unit : what `--help` says; the unit in square brackets.
    bounds : smallest and largest value allowed (inclusive), None for open.
    choices : the words allowed.
    flag : the flag, or several that mean the same; "--" + field name unless given.
    group : heading in `--help`, one of `GROUPS` or a new one.
    role : what a path means, see `Role`.
    default_text : what `--help` shows as the default where the value itself says little.
    value_if_bare : the value of the flag given without a value.
    """
    metadata = {
        "help": help,
        "unit": unit,
        "bounds": bounds,
        "choices": choices,
        "flag": flag,
        "group": group,
        "role": role,
        "default_text": default_text,
        "value_if_bare": value_if_bare,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Spec:
    """One option as the parser and the help text see it."""

    name: str
    flags: tuple[str, ...]
    type: type
    repeated: bool
    optional: bool
    default: Any
    help: str
    unit: str
    bounds: tuple[float | None, float | None]
    choices: tuple[str, ...]
    group: str
    role: Role
    default_text: str
    value_if_bare: str | None

    @property
    def required(self) -> bool:
        """True when there is no default."""
        return self.default is REQUIRED


def specs(cls: type) -> tuple[Spec, ...]:
    """The options of a dataclass, group by group, `Compute` last."""
    hints = typing.get_type_hints(cls)
    found = [_spec(field, hints[field.name]) for field in dataclasses.fields(cls)]
    order = {group: i for i, group in enumerate(GROUPS)}
    return tuple(sorted(found, key=lambda spec: order.get(spec.group, len(GROUPS) - 2)))


def _spec(field: dataclasses.Field[Any], hint: Any) -> Spec:
    kind, repeated, optional = _unwrap(hint)
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    meta = field.metadata
    flag = meta["flag"] or "--" + field.name.rstrip("_")
    text = meta["default_text"]
    if text is None:
        text = "none" if default is None or default == () else _as_text(default)
    return Spec(
        name=field.name,
        flags=(flag,) if isinstance(flag, str) else flag,
        type=kind,
        repeated=repeated,
        optional=optional,
        default=default,
        help=meta["help"],
        unit=meta["unit"],
        bounds=meta["bounds"],
        choices=meta["choices"],
        group=meta["group"],
        role=meta["role"],
        default_text=text,
        value_if_bare=meta["value_if_bare"],
    )


def _unwrap(hint: Any) -> tuple[type, bool, bool]:
    """(type, repeated, optional) of `T`, `T | None` or `tuple[T, ...]`."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return arguments[0], True, False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return next(a for a in arguments if a is not type(None)), False, True
    return hint, False, False


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, tuple):
        return ", ".join(map(_as_text, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def bounds_text(bounds: tuple[float | None, float | None]) -> str:
    """Bounds in words: "0 to 1", ">= 0", "<= 1" or nothing."""
    low, high = bounds
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    if low is not None:
        return f">= {low:g}"
    return "" if high is None else f"<= {high:g}"


def validate(options: Any) -> None:
    """Check type, bounds and choices of every field; raises UsageError naming the flag."""
    for spec in specs(type(options)):
        value = getattr(options, spec.name)
        if value is None and spec.optional:
            continue
        for item in value if spec.repeated else (value,):
            _validate_value(spec, item)


def _validate_value(spec: Spec, value: Any) -> None:
    flag = spec.flags[0]
    allowed = (int, float) if spec.type is float else (spec.type,)
    if not isinstance(value, allowed) or (spec.type is not bool and isinstance(value, bool)):
        raise UsageError(f"{flag} {value}: expected {_TYPE_NAMES[spec.type]}")
    if spec.choices and value not in spec.choices:
        raise UsageError(f"{flag} {value}: expected one of {', '.join(spec.choices)}")
    if isinstance(value, int | float) and spec.type is not bool:
        low, high = spec.bounds
        outside = (low is not None and value < low) or (high is not None and value > high)
        if outside or not math.isfinite(value):
            unit = f" {spec.unit}" if spec.unit else ""
            wanted = bounds_text(spec.bounds) or "a finite number"
            raise UsageError(f"{flag} {_as_text(value)}: expected {wanted}{unit}")


_TYPE_NAMES = {str: "text", int: "a whole number", float: "a number", bool: "on or off"}


def available_cores() -> int:
    """The number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def draw_seed() -> int:
    """A seed nobody chose."""
    return secrets.randbelow(2**31)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every job understands; a job's `Options` derives from this class.

    Every construction is validated (UsageError); a `__post_init__` of a derived class calls this one first.
    """

    j: int = option(
        available_cores, help="Threads", bounds=(1, None), group="Compute", default_text="all cores allowed"
    )
    gpu: str | None = option(
        None,
        help='GPUs to use, as "0", "0,1" or "0:1"; without a value all of them; absent: CPU',
        group="Compute",
        value_if_bare="",
    )
    continue_: str | None = option(
        None,
        help="Continue from this file of an interrupted run, with its options",
        group="Compute",
        role="input",
    )
    random_seed: int = option(
        draw_seed,
        help="Seed of the random numbers",
        bounds=(0, None),
        group="Compute",
        default_text="drawn, and written to job.json",
    )
    pipeline_control: str | None = option(
        None, help="Folder of the RELION_JOB_* files", group="Compute", default_text="the job's folder"
    )
    quiet: bool = option(False, help="Say nothing on the terminal except errors", group="Compute")

    def __post_init__(self) -> None:
        validate(self)
        gpu_ids(self.gpu)


OptionsT = TypeVar("OptionsT", bound=CommonOptions)


def build(cls: type[OptionsT], given: Mapping[str, Any], job: str = "") -> OptionsT:
    """Options from the values given on the command line, after those of the run being continued.

    `given` maps field names to values. With `continue_`, the options in job.json beside that file stand
    for those not given. Raises UsageError for a required flag that is in neither, or where that run was of another job
    than `job`.
    """
    values = dict(given)
    if values.get("continue_"):
        record = Path(values["continue_"]).parent / "job.json"
        values = {**recorded_options(cls, record, job), **values}
    missing = [spec.flags[0] for spec in specs(cls) if spec.required and spec.name not in values]
    if missing:
        raise UsageError(f"required: {', '.join(missing)}")
    return cls(**values)


def recorded_options(cls: type[CommonOptions], job_json: Path, job: str = "") -> dict[str, Any]:
    """The options of `cls` that an earlier run of `job` wrote to `job_json` ({} when there is no such file)."""
    if not job_json.is_file():
        return {}
    try:
        record = json.loads(job_json.read_text())
        recorded, other = record["options"], record.get("job", job)
        kept = {spec.name: recorded[spec.name] for spec in specs(cls) if spec.name in recorded}
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"--continue: {job_json} is not the record of a job ({error})") from None
    if job and other != job:
        raise UsageError(f"--continue: {job_json} is the record of {other}; continue with spa {other} --continue FILE")
    for spec in specs(cls):
        if spec.repeated and spec.name in kept:
            kept[spec.name] = tuple(kept[spec.name])
    return kept


def gpu_ids(text: str | None) -> tuple[int, ...] | None:
    """Device numbers of `--gpu` in RELION's syntax; () means all devices, None the CPU.

    "," separates the devices of one process, ":" those of several processes; both are read as a list.
    Raises UsageError for anything else.
    """
    if text is None:
        return None
    if not text.strip():
        return ()
    try:
        ids = tuple(dict.fromkeys(int(part) for part in text.replace(":", ",").split(",")))
    except ValueError:
        ids = (-1,)
    if min(ids) < 0:
        raise UsageError(f'--gpu {text}: expected device numbers such as "0", "0,1" or "0:1"')
    return ids
