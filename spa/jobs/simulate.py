"""Simulate."""
from dataclasses import dataclass
from spa.options import *
@dataclass(frozen=True, kw_only=True)
class Options(CommonOptions):
    o: str = option(help="Output folder", role="folder")
    box: int = option(64, help="Box", unit="px", bounds=(8,1024), group="Particles")
    norm: bool = option(True, help="Normalise", group="Corrections")
    ctf: bool = option(False, help="CTF")
    model: tuple[str, ...] = option((), help="models", role="input")
def run(options, job):
    job.say(str(options))
    import time, os
    for i in job.progress(3, "x").__class__(range(20), disable=True):
        job.check_abort(); time.sleep(0.1)
