"""Cryo-EM single-particle analysis, from particles to a validated map."""

from pathlib import Path

__version__ = "0.1.0"

_ROOT = Path(__file__).resolve().parent.parent
if (_ROOT / "pyproject.toml").exists():  # a checkout: kernels/ and cli/ lie beside spa/, not below it
    __path__.append(str(_ROOT))
