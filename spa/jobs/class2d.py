"""Sort particles into 2D classes: averages of images that look alike, aligned in the plane."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spa.em import output
from spa.em.class_schedule import FlatSchedule
from spa.em.engine import Engine
from spa.em.inputs import read_inputs
from spa.em.settings import Search, SearchOptions
from spa.errors import InputError
from spa.io import class_plots, plots
from spa.io.particle_io import read_particles
from spa.job import Job
from spa.options import option


@dataclass(frozen=True, kw_only=True)
class Options(SearchOptions):
    """Options of class2d beyond those of every job that aligns particles."""

    nr_classes: int = option(help="Number of classes", flag="--K", group="Classes", bounds=(1, 1000))
    iter: int = option(25, help="Number of iterations", group="Classes", bounds=(1, 999))
    tau2_fudge: float = option(2.0, help="Regularisation parameter T", group="Classes", bounds=(1e-3, 100.0))
    psi_step: float = option(
        10.0, help="In-plane sampling before oversampling", unit="°", group="Sampling", bounds=(0.5, 60.0)
    )
    offset_range: float = option(
        5.0, help="Search range of the shifts around the last one", unit="px", group="Sampling", bounds=(0.0, 200.0)
    )
    strict_highres_exp: float = option(
        -1.0,
        help="Never compare images and references beyond this resolution (-1: no limit)",
        unit="Å",
        group="Classes",
        bounds=(-1.0, 1000.0),
    )
    class_inactivity_threshold: float = option(
        0.1,
        help="Fill classes whose share is below this part of an equal one with half of a large class, during the first "
        "80 % of the iterations (0: leave them empty)",
        group="Classes",
        bounds=(0.0, 1.0),
    )
    grad: bool = option(
        False,
        help="Iterations but the last see small parts of the particles, which grow, and carry averages on: the cost "
        "hardly depends on the number of particles",
        group="Classes",
    )
    center_classes: bool = option(False, help="Move each class average so that its density is centred", group="Classes")


def run(options: Options, job: Job) -> None:
    """Classify, or go on from the optimiser file that --continue names."""
    source = replace(options, i=output.data_path(options.continue_)) if options.continue_ else options
    n, n_classes = read_particles(source.i).n, options.nr_classes
    if n < n_classes:
        raise InputError(f"--K {n_classes}: expected at most as many classes as particles, {options.i} has {n}")
    inputs = read_inputs(source, lambda box, _: np.zeros((n_classes, box, box), np.float32), job.warn, False)
    grid = inputs.box_size, inputs.pixel_size
    schedule = FlatSchedule(
        options,
        Search(insertion_mass=0.95, insertion_cap=300),
        *grid,
        options.iter,
        options.psi_step,
        options.strict_highres_exp,
        options.class_inactivity_threshold,
        n,
        options.grad,
    )
    engine = Engine(options, inputs, schedule, 1, job, fit_scale=False, center_classes=options.center_classes)
    state = engine.resumed(options.continue_) if options.continue_ else None
    state = engine.run(state)
    shares, shells = state.pdf_class[0], state.class_shells
    resolutions = [inputs.box_size * inputs.pixel_size / s if s > 0 else np.inf for s in shells]
    figure = class_plots.gallery(
        state.maps[0], np.arange(1, n_classes + 1), shares, np.array(resolutions), inputs.pixel_size
    )
    plots.save(job.path("_classes.png"), figure)
    job.say(f"wrote {job.path('_classes.mrcs')}, {job.path('_data.star')} and {job.path('_classes.png')}")
