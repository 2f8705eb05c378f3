"""Sort particles into 2D classes: averages of images that look alike, aligned in the plane."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from spa.em import output
from spa.em.class_schedule import FlatSchedule
from spa.em.engine import Engine
from spa.em.inputs import check_number_of_classes, read_inputs
from spa.em.settings import ClassificationOptions, Search
from spa.io import class_plots, plots
from spa.job import Job
from spa.options import option


@dataclass(frozen=True, kw_only=True)
class Options(ClassificationOptions):
    """Options of class2d beyond those of every classification."""

    tau2_fudge: float = option(2.0, help="Regularisation parameter T", group="Classes", bounds=(1e-3, 100.0))
    psi_step: float = option(
        10.0, help="In-plane sampling before oversampling", unit="°", group="Sampling", bounds=(0.5, 60.0)
    )
    offset_range: float = option(
        5.0, help="Search range of the shifts around the last one", unit="px", group="Sampling", bounds=(0.0, 200.0)
    )
    class_inactivity_threshold: float = option(
        0.1,
        help="Fill classes whose share is below this part of an equal one with half of a large class, during the first "
        "80 % of the iterations (0: leave them empty)",
        group="Classes",
        bounds=(0.0, 1.0),
    )
    center_classes: bool = option(False, help="Move each class average so that its density is centred", group="Classes")


def run(options: Options, job: Job) -> None:
    """Classify, or go on from the optimiser file that --continue names."""
    source = replace(options, i=output.data_path(options.continue_)) if options.continue_ else options
    n_classes = options.nr_classes
    inputs = read_inputs(source, lambda box, _: np.zeros((n_classes, box, box), np.float32), job.warn, False)
    check_number_of_classes(options, inputs)
    grid = inputs.box_size, inputs.pixel_size
    schedule = FlatSchedule(
        options,
        Search(insertion_mass=0.95, insertion_cap=300),
        *grid,
        options.iter,
        options.psi_step,
        options.strict_highres_exp,
        options.class_inactivity_threshold,
        inputs.n_particles,
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
