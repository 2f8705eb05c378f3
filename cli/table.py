"""The name table of jobs, in pipeline order."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

JOBS: dict[str, str] = {
    "simulate": "spa.jobs.simulate",
    "import": "spa.jobs.import_",
    "motioncorr": "spa.jobs.motioncorr",
    "ctffind": "spa.jobs.ctffind",
    "pick": "spa.jobs.pick",
    "extract": "spa.jobs.extract",
    "class2d": "spa.jobs.class2d",
    "select": "spa.jobs.select",
    "refine3d": "spa.jobs.refine3d",
    "class3d": "spa.jobs.class3d",
    "mask": "spa.jobs.mask",
    "postprocess": "spa.jobs.postprocess",
    "reconstruct": "spa.jobs.reconstruct",
    "project": "spa.jobs.project",
    "subtract": "spa.jobs.subtract",
    "expand": "spa.jobs.expand",
    "convert": "spa.jobs.convert",
}
"""Job -> module with a dataclass `Options` and a function `run(options, job)`."""


def load(name: str) -> ModuleType:
    """Import the module of a job."""
    return importlib.import_module(JOBS[name])


def summary(name: str) -> str:
    """The first line of the docstring of a job's module, read without importing it."""
    spec = importlib.util.find_spec(JOBS[name])
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(JOBS[name])
    docstring = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return docstring.splitlines()[0] if docstring else ""
