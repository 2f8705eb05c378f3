"""Imports go one way: cli, jobs, {em, map_job, job}, {science, io, comm, options}, kernels."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

KERNELS, LOW, MIDDLE, JOBS, CLI = range(5)
SHARED = {"spa", "spa.errors"}
"""Modules that anything but a kernel may import."""
SERVICES = {"spa.comm", "spa.options"}
KERNEL_PACKAGES = {"numpy", "scipy", "numba", "llvmlite", "cupy", "cupyx", "threadpoolctl"}
SCIENCE_PACKAGES = {"numpy", "scipy", "numba"}
FILE_MODULES = {"os", "pathlib", "io", "shutil", "tempfile", "gzip", "zipfile", "pickle", "json", "csv", "subprocess"}
FILE_CALLS = {"open", "load", "save", "savez", "savez_compressed", "loadtxt", "savetxt", "fromfile", "tofile", "memmap"}


def sources() -> dict[str, Path]:
    """Module name -> file, of everything that is installed."""
    found = {}
    for folder, package in (("spa", "spa"), ("kernels", "spa.kernels"), ("cli", "spa.cli")):
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            found[".".join((package, *parts))] = path
    return found


def imports(tree: ast.AST, module: str, is_package: bool, known: set[str]) -> set[str]:
    """Modules that a source imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = module.split(".")
                anchor = anchor[: len(anchor) - node.level + is_package]
                base = ".".join([*anchor, *([node.module] if node.module else [])])
            inside = {f"{base}.{alias.name}" for alias in node.names} & known
            found |= inside or {base}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def layer(module: str) -> int:
    """The layer of a module of ours."""
    if module.startswith("spa.kernels"):
        return KERNELS
    if module.startswith("spa.cli"):
        return CLI
    if module.startswith("spa.jobs"):
        return JOBS
    return MIDDLE if module.startswith("spa.em") or module in ("spa.job", "spa.map_job") else LOW


def is_science(module: str) -> bool:
    """True for the modules that hold arrays and formulas only."""
    return layer(module) == LOW and not module.startswith("spa.io") and module not in SERVICES | SHARED


def breaches(module: str, imported: set[str], tree: ast.AST) -> list[str]:
    """What a module does against the rules."""
    found = []
    level = layer(module)
    for name in sorted(imported):
        top = name.split(".")[0]
        if top in ("cupy", "cupyx") and module != "spa.kernels.backend":
            found.append(f"{name}: only kernels/backend.py imports CuPy")
        if top != "spa":
            allowed = KERNEL_PACKAGES if level == KERNELS else SCIENCE_PACKAGES if is_science(module) else None
            if allowed is not None and top not in sys.stdlib_module_names and top not in allowed:
                found.append(f"{name}: not for kernels or science")
            if is_science(module) and top in FILE_MODULES:
                found.append(f"{name}: science modules do no I/O")
        elif name not in SHARED or level == KERNELS:
            found += inner_breaches(module, level, name)
    if is_science(module):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                if called in FILE_CALLS:
                    found.append(f"{called}(...) on line {node.lineno}: science modules do no I/O")
    return found


def inner_breaches(module: str, level: int, name: str) -> list[str]:
    """What is wrong with `module` importing our own module `name`."""
    found = []
    if layer(name) > level:
        found.append(f"{name}: upwards")
    if level == JOBS and name.startswith("spa.jobs.") and name != module:
        found.append(f"{name}: a job imports a job")
    if is_science(module) and (name.startswith("spa.io") or name in SERVICES):
        found.append(f"{name}: science modules do no I/O and know no options")
    if module.startswith("spa.em") and module != "spa.em.engine" and name in ("spa.job", "spa.comm"):
        found.append(f"{name}: in em only engine.py knows job and comm")
    if level == MIDDLE and not module.startswith("spa.em") and name.startswith("spa.em"):
        found.append(f"{name}: what jobs share does not know the engine")
    return found


MODULES = sources()


@pytest.mark.parametrize("module", MODULES)
def test_module_keeps_to_its_layer(module: str) -> None:
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = imports(tree, module, path.name == "__init__.py", set(MODULES))
    assert not breaches(module, imported, tree)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("spa.kernels.slices", "from spa import fourier"),
        ("spa.kernels.slices", "import polars"),
        ("spa.kernels.slices", "import cupy"),
        ("spa.fsc", "from spa.io import mrc"),
        ("spa.fsc", "from pathlib import Path"),
        ("spa.fsc", "def f():\n    return open('x')"),
        ("spa.fsc", "from spa.options import option"),
        ("spa.io.star", "from spa.job import Job"),
        ("spa.em.schedule", "from spa.job import Job"),
        ("spa.em.schedule", "def f():\n    from spa import comm"),
        ("spa.job", "from spa.em.engine import refine"),
        ("spa.jobs.mask", "from spa.jobs import postprocess"),
        ("spa.jobs.mask", "from spa.cli.main import main"),
        ("spa.jobs.mask", "import importlib\nimportlib.import_module('spa.cli.main')"),
    ],
)
def test_a_breach_is_found(module: str, source: str) -> None:
    tree = ast.parse(source)
    known = {"spa.fourier", "spa.io.mrc", "spa.comm", "spa.jobs.postprocess"}
    assert breaches(module, imports(tree, module, False, known), tree)


def test_every_package_is_installed() -> None:
    import tomllib

    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    assert listed == {name for name, path in MODULES.items() if path.name == "__init__.py"}
