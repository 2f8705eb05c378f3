"""Sort particles into 3D classes: several maps from one set of particles, and whether they are worth telling apart.

From one reference all particles are first aligned to one map, for a third of the iterations, ever finer; then they are
parted at random, and the classes form at these poses; the last iterations search poses in all classes again. With
several references (a STAR file) every iteration searches, and with --skip_align none does. Particles are compared with
classes that were made without them (`spa.em.folds`), so that what tells classes apart is not the noise of their images.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from spa import class_stability, healpix
from spa.em import output
from spa.em.class_schedule import MapSchedule
from spa.em.classes import random_classes
from spa.em.engine import Engine
from spa.em.folds import make_folds
from spa.em.inputs import Inputs, check_number_of_classes, read_inputs, read_reference
from spa.em.settings import ClassificationOptions, RefinementOptions, Search
from spa.em.state import FloatArray, State
from spa.errors import InputError
from spa.io import class_plots, plots, star
from spa.job import Job
from spa.options import option

FOLDS = 4
"""Parts of the particles, each of which is compared with maps that the others give."""
FEWEST = 5
"""Iterations in which classes may have come to differ from those drawn by lot."""
UNDECIDED = 0.9
"""Entropy of the assignments, over that of even ones, above which particles are not told apart."""


@dataclass(frozen=True, kw_only=True)
class Options(ClassificationOptions, RefinementOptions):
    """Options of class3d beyond those of every classification and refinement."""

    tau2_fudge: float = option(4.0, help="Regularisation parameter T", group="Classes", bounds=(1e-3, 100.0))
    skip_align: bool = option(
        False,
        help="Compare each particle at the angles and shifts it has, in all classes; classes then differ inside "
        "--solvent_mask alone and are their mean outside",
        group="Sampling",
    )
    sigma_ang: float = option(
        -1.0,
        help="Standard deviation of the angles about those that particles have; searched up to three (-1: everywhere)",
        unit="°",
        group="Sampling",
        bounds=(-1.0, 30.0),
    )
    repeats: int = option(
        1,
        help="Classify so many times, each from other random classes, and report how far the results agree",
        group="Classes",
        bounds=(1, 100),
    )


def run(options: Options, job: Job) -> None:
    """Classify, or go on from the optimiser file that --continue names."""
    assignments: list[FloatArray] = []
    for repeat in range(options.repeats):
        rootname = options.o if repeat == 0 else f"{options.o}_repeat{repeat + 1}"
        if repeat:
            job.say(f"repeat {repeat + 1} of {options.repeats}")
        assignments.append(_classified(replace(options, random_seed=options.random_seed + repeat), rootname, job))
    if options.repeats > 1:
        first, others = assignments[0], assignments[1:]
        rand = float(np.mean([class_stability.adjusted_rand(first, other) for other in others]))
        agree = float(np.mean([class_stability.agreement(first, other) for other in others]))
        job.say(
            f"repeated runs: adjusted Rand index {rand:.2f}, {100 * agree:.0f} % of the particles in matching classes"
        )
        if rand < class_stability.ALIKE:
            job.warn(
                "repeated runs put the particles into different classes: the classes are the work of chance, and the "
                "particles show one state as far as these data can tell"
            )


def _classified(options: Options, rootname: str, job: Job) -> FloatArray:
    """One run; returns the class number of each particle."""
    final, last = Path(f"{rootname}_optimiser.star"), _last_state(options, rootname)
    if options.continue_ and final.exists():
        job.say(f"nothing to continue: {final} is there")
        return _classes_of(f"{rootname}_data.star")
    source = replace(options, i=output.data_path(last)) if last else options
    inputs = read_inputs(
        source,
        lambda box, px: _references(options, box, px, job.say, _number_of_maps(last)),
        job.warn,
        False,
        options.solvent_mask,
    )
    check_number_of_classes(options, inputs)
    schedule = _schedule(options, inputs)
    focus = inputs.solvent_mask if options.skip_align else None
    if focus is not None:
        inputs = replace(inputs, solvent_mask=None)
    find_focus = inputs.solvent_mask is None and options.flatten_solvent
    images = inputs.particles.image_numbers()
    folds = make_folds(options.random_seed, images, min(FOLDS, int(images.max()) + 1), focus, find_focus)
    engine = Engine(options, inputs, schedule, 1, job, True if options.firstiter_cc else None, folds=folds)
    engine.rootname = rootname
    forming = schedule.n_iterations - schedule.n_consensus
    if schedule.staged and forming < FEWEST:
        job.warn(
            f"--iter {options.iter} leaves {forming} iterations after the particles are parted by lot: classes "
            "need more to form"
        )
    state = engine.resumed(last) if last else None
    if state is not None and state.n_classes > 1 and folds.number > 1 and folds.maps is None:
        job.warn(f"the maps beside {last} are kept for the last two iterations only: the result may differ somewhat")
    schedule.poses = engine.poses
    state = engine.run(state)
    _report(options, inputs, state, rootname, job)
    return np.asarray(engine.poses.class_number)


def _last_state(options: Options, rootname: str) -> str:
    """The optimiser file from which a run goes on; empty where it starts anew."""
    if not options.continue_:
        return ""
    if Path(options.continue_).name.startswith(f"{Path(rootname).name}_it"):
        return options.continue_
    found = sorted(Path(rootname).parent.glob(f"{Path(rootname).name}_it*_optimiser.star"))
    return str(found[-1]) if found else ""


def _number_of_maps(last: str) -> int:
    """The number of maps that a run goes on from: one until the particles are parted."""
    if not last:
        return 1
    model = star.read(last)["optimiser_general"].get_text("rlnModelStarFile")
    return len(star.read(model)["model_classes"])


def _references(options: Options, box: int, pixel_size: float, say: Callable[[str], None], n_maps: int) -> FloatArray:
    """One reference, as many times as a run has maps, or those that a STAR file lists."""
    paths = [options.ref]
    if options.ref.endswith(".star"):
        listed = star.read(options.ref)
        block = listed["model_classes"] if "model_classes" in listed else next(iter(listed))
        paths = block.text("rlnReferenceImage")
        if len(paths) != options.nr_classes:
            raise InputError(f"{options.ref}: expected {options.nr_classes} references (--K), found {len(paths)}")
    maps = [read_reference(path, options.ini_high, box, pixel_size, say) for path in paths]
    return np.stack(maps * (n_maps if len(maps) == 1 and n_maps == options.nr_classes else 1))


def _schedule(options: Options, inputs: Inputs) -> MapSchedule:
    box, pixel_size = inputs.box_size, inputs.pixel_size
    poses = inputs.first_poses()
    if -1 < options.sigma_ang <= 0:
        raise InputError(f"--sigma_ang {options.sigma_ang:g}: expected a positive angle, or -1 to search everywhere")
    if options.skip_align and not poses.known.all():
        raise InputError(f"{options.i}: --skip_align needs the angles of the particles, found none")
    search = Search(insertion_mass=0.95, insertion_cap=300)
    if options.sigma_ang > 0:
        # the first level of a local search, one order above the last
        order = options.healpix_order + options.oversampling - 1
        cap = (1 - math.cos(math.radians(3 * options.sigma_ang))) / 2
        search = replace(
            search,
            local_directions=max(search.local_directions, math.ceil(12 * 4**order * cap)),
            local_psi=max(search.local_psi, math.ceil(3 * options.sigma_ang / healpix.angular_step(order))),
        )
    one_reference = options.nr_classes > 1 and not options.ref.endswith(".star")
    seeds = random_classes(options.random_seed, inputs.n_particles, options.nr_classes) if one_reference else None
    return MapSchedule(
        options,
        search,
        box,
        pixel_size,
        options.iter,
        options.strict_highres_exp,
        options.nr_classes,
        options.sigma_ang,
        options.skip_align,
        seeds,
        inputs.n_particles,
        options.grad,
    )


def _report(options: Options, inputs: Inputs, state: State, rootname: str, job: Job) -> None:
    """Say and draw what the classes are."""
    shares = state.pdf_class[0]
    resolutions = [inputs.box_size * inputs.pixel_size / s if s > 0 else math.inf for s in state.class_shells]
    notes = [
        f"entropy of the assignments {state.class_entropy:.2f} of an even one's",
    ]
    if state.iteration > 1:
        notes.append(f"{100 * state.class_changes:.1f} % of the particles changed class in the last iteration")
    job.say("; ".join(notes))
    if options.nr_classes > 1 and state.class_entropy > UNDECIDED:
        job.warn("particles fit all classes about equally well: as far as these data can tell they show one state")
    told = [_shares(f"{rootname}_it{i:03d}_model.star") for i in range(1, state.iteration + 1)]
    history = np.stack([h for h in told if len(h) == len(shares)])
    figure = class_plots.classes3d(
        state.maps[0], inputs.pixel_size, history, resolutions, notes, state.iteration - len(history) + 1
    )
    plots.save(f"{rootname}_classes.png", figure)
    job.say(
        f"wrote {rootname}_class001.mrc to _class{len(shares):03d}.mrc, {rootname}_data.star, {rootname}_classes.png"
    )


def _shares(path: str) -> FloatArray:
    """The shares of the classes that a model file tells; none where it is gone."""
    return star.read(path)["model_classes"].floats("rlnClassDistribution") if Path(path).exists() else np.zeros(0)


def _classes_of(path: str) -> FloatArray:
    return star.read(path)["particles"].floats("rlnClassNumber")
