"""Refine one map from particles by gold standard: two independent halves, resolution from their FSC."""

from __future__ import annotations

from dataclasses import dataclass, replace

from spa.em import output
from spa.em.engine import Engine
from spa.em.inputs import Inputs, read_inputs, read_reference
from spa.em.schedule import RefinementSchedule
from spa.em.settings import RefinementOptions, Search
from spa.euler import angles
from spa.fsc import shell_to_resolution
from spa.io import plots
from spa.job import Job
from spa.options import option


@dataclass(frozen=True, kw_only=True)
class Options(RefinementOptions):
    """Options of refine3d beyond those of every refinement."""

    auto_local_healpix_order: int = option(
        4,
        help="Angular sampling (before oversampling) from which searches are local",
        group="Sampling",
        bounds=(0, 8),
    )
    low_resol_join_halves: float = option(
        -1.0,
        help="Let the halves share what is coarser than this, so that their orientations agree (-1: nothing)",
        unit="Å",
        group="Optimisation",
        bounds=(-1.0, 1000.0),
    )


def make_engine(options: Options, inputs: Inputs, job: Job, search: Search | None = None) -> Engine:
    """The engine of a refinement."""
    grid = inputs.box_size, inputs.pixel_size
    schedule = RefinementSchedule(options, search or Search(), *grid, options.auto_local_healpix_order)
    return Engine(options, inputs, schedule, 2, job, True if options.firstiter_cc else None)


def run(options: Options, job: Job) -> None:
    """Refine to convergence, or go on from the optimiser file that --continue names."""
    source = replace(options, i=output.data_path(options.continue_)) if options.continue_ else options
    if options.ini_high <= 0:
        job.warn(
            "--ini_high was not given: both halves start from all the detail of the reference, so their agreement "
            "proves nothing up to there"
        )
    inputs = read_inputs(
        source,
        lambda box, px: read_reference(options.ref, options.ini_high, box, px, job.say)[None],
        job.warn,
        with_halves=True,
        solvent_mask=options.solvent_mask,
    )
    inputs.low_resol_join_halves = options.low_resol_join_halves
    engine = make_engine(options, inputs, job)
    state = None
    if options.continue_:
        state, engine.poses, engine.group_scale = output.read_state(options.continue_, inputs, engine.schedule)
        if engine.schedule.progress.finished:
            if job.path("_optimiser.star").exists():
                job.say(f"nothing to continue: {options.continue_} has converged, {job.path('_class001.mrc')} is there")
                return
            # the run ended between its last iteration and its last files, which the final pass makes again
            engine.schedule.progress.finished = False
        job.say(f"continuing after iteration {state.iteration}")
    state = engine.run(state)
    box, pixel_size = inputs.box_size, inputs.pixel_size
    shell = state.resolution_shell
    plots.save(
        job.path("_fsc.png"),
        plots.fsc({"corrected": state.fsc}, box, pixel_size, shell, title="Half maps inside the particle's sphere"),
    )
    euler_angles = angles(engine.poses.rotations)
    plots.save(job.path("_orientations.png"), plots.orientations(euler_angles[:, 0], euler_angles[:, 1]))
    plots.save(job.path("_class001.png"), plots.slices({"refined map": engine.final_map}, pixel_size))
    job.say(
        f"wrote {job.path('_class001.mrc')}; resolution {shell_to_resolution(shell, box, pixel_size):.2f} Å "
        "(FSC = 0.143 of the half maps; make a mask and run postprocess for the final figure)"
    )
