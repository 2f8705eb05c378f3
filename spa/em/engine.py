"""The loop that every refinement job is: expectation, maximisation, new state, until the schedule is done."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from spa import healpix
from spa.em import output
from spa.em.accuracy import estimate_accuracy
from spa.em.expectation import Reference, Step
from spa.em.images import InitialNoise, Preparer, unlike_the_others
from spa.em.inputs import Inputs
from spa.em.maximisation import Estimates, Maps, draw_uniform, noise_spectra, reconstruct_halves
from spa.em.schedule import MAX_ITERATIONS, Schedule, particle_radius
from spa.em.settings import RefinementOptions, Search
from spa.em.state import FloatArray, State, Sums
from spa.em.sweep import Indices, Sweep
from spa.em.updates import take_over, update_group_scale
from spa.errors import InputError
from spa.euler import angular_distance
from spa.fourier import reference_transform
from spa.fsc import shell_to_resolution
from spa.job import Job
from spa.kernels.backend import device_memory, host_memory, to_device, use_device
from spa.mask import soft_sphere, support_radius

PROBE_PARTICLES = 200
"""Particles on which the grey scale of the reference is measured."""
ACCURACY_PARTICLES = 100
"""Particles per half set on which the accuracy of the poses is estimated."""
SCALE_TRUSTED = (0.67, 1.5)
"""Grey scales of the reference, relative to the images, that need no fitting."""
RESCUE_SAMPLE = 200
"""Particles of each half set that the global search before convergence tries first."""
RESCUE_WORTH = 0.01
"""Share of that sample that must move for the search to go on with all others."""
DETERMINED = 0.1
"""Share of its probability below which an average particle's likeliest pose is in doubt; good data end above 0.3."""


@dataclass
class Iteration:
    """What an iteration did, for its log line and files."""

    step: Step
    maps: Maps
    median_angle: float
    median_offset: float
    seconds: float
    candidates: float


class Engine:
    """Expectation-maximisation over one or two half sets.

    Parameters
    ----------
    options : what the user asked for.
    inputs : particles, images, reference and masks, checked.
    local_order : HEALPix order (before oversampling) from which searches are local.
    n_halves : 2 for gold-standard refinement, 1 for classification.
    job : where output and messages go.
    """

    def __init__(
        self,
        options: RefinementOptions,
        inputs: Inputs,
        local_order: int,
        n_halves: int,
        job: Job,
        search: Search | None = None,
    ) -> None:
        self.options = options
        self.inputs = inputs
        self.n_halves = n_halves
        self.job = job
        self.search = search or Search()
        self.box, self.pixel_size = inputs.box_size, inputs.pixel_size
        self.device = job.devices[0] if job.devices else None
        self.schedule = Schedule(options, self.search, self.box, self.pixel_size, local_order)
        self.radius = particle_radius(options, self.box, self.pixel_size)
        self.sphere = np.asarray(soft_sphere(self.box, self.radius, min(5.0, self.box / 2 - self.radius)))
        circle = np.asarray(soft_sphere(self.box, self.radius, min(5.0, self.box / 2 - self.radius), ndim=2))
        self.prepare = Preparer(
            self.box,
            inputs.coefficients,
            inputs.optics,
            inputs.groups,
            circle if options.zero_mask else None,
            self.device,
            inputs.aberrations,
            self.pixel_size,
        )
        available = device_memory(self.device) or host_memory()
        memory = int(options.mem * 2**30) or available // 2
        self.sweep = Sweep(inputs, self.prepare, self.search, options.pad, memory, job.check_abort, self.device)
        self.poses = inputs.first_poses()
        if not options.norm:
            self.poses.norm[:] = 1
        self.final_map = inputs.reference
        self.reference_radius = support_radius(self._solvent_mask(), self.box)
        self.group_scale: FloatArray = np.ones((n_halves, inputs.n_groups))
        self.fit_scale = False

    def half_indices(self, half: int) -> Indices:
        """Particles of a half set, neighbours in orientation beside each other so that they share slices."""
        if self.n_halves == 1:
            indices = np.arange(self.inputs.n_particles)
        else:
            indices = np.nonzero(self.inputs.half_set == half + 1)[0]
        if self.poses.known.any():
            pixel = healpix.vec2pix(4, self.poses.rotations[indices, 2])
            indices = indices[np.argsort(pixel, kind="stable")]
        return self.job.comm.share(indices.astype(np.int64))

    def run(self, state: State | None = None) -> State:
        """Iterate until the schedule is finished; `state` continues an earlier run."""
        use_device(self.device)
        if len(self.job.devices) > 1:
            self.job.warn(f"one GPU is used, number {self.device}")
        if state is None:
            if self.schedule.local and not self.poses.known.all():
                raise InputError(
                    f"--healpix_order {self.options.healpix_order}: searches are local from order "
                    f"{self.schedule.local_order} on, but {self.options.i} has no angles to start from"
                )
            state = self._first_state()
            self.fit_scale = self.options.firstiter_cc or self._needs_scale(state)
        while not self.schedule.progress.finished:
            if self.schedule.progress.rescue:
                self._rescue(state)
            state, done = self._iterate(state)
            self._report(state, done)
            if done.maps.joined is not None and done.maps.unfiltered is not None:
                self._finish(state, done.maps.unfiltered, done.maps.joined)
        if self.schedule.progress.exhausted:
            self.job.warn(f"not converged after {MAX_ITERATIONS} iterations: poses or resolution were still changing")
        if state.ave_pmax < DETERMINED:
            self.job.warn(
                f"poses are hardly determined: the likeliest one of an average particle holds "
                f"{100 * state.ave_pmax:.0f} % of its probability, the expected accuracy is "
                f"{state.accuracy_rotations:.1f}°. Both halves may then agree on features that wrong poses, alike in "
                "both, have made: hold the map against something else before you believe its resolution"
            )
        return state

    def _finish(self, state: State, unfiltered: FloatArray, joined: FloatArray) -> None:
        joined = joined * self._solvent_mask()
        self.final_map = joined[0]
        output.write_final(
            self.job.rootname,
            self.inputs,
            self.options,
            state,
            self.poses,
            self.group_scale,
            unfiltered,
            joined,
            self.schedule,
        )

    def _first_state(self) -> State:
        """Noise from the images, maps from the reference."""
        noise = [InitialNoise(self.inputs.n_optics, self.box) for _ in range(self.n_halves)]
        power = np.full(self.inputs.n_particles, np.nan)
        bar = self.job.progress(self.inputs.n_particles, "noise spectra")
        for half in range(self.n_halves):
            for indices, images in self.sweep.batches(self.half_indices(half)):
                power[indices] = noise[half].add(images, self.inputs.optics[indices])
                bar.update(len(indices))
                self.job.check_abort()
        bar.close()
        damaged = unlike_the_others(power, self.options.i)
        if damaged:
            self.job.warn(damaged)
        shells = self.box // 2 + 1
        reference = self.inputs.reference * self._solvent_mask()
        maps = np.broadcast_to(reference.astype(np.float32), (self.n_halves, 1, *reference.shape)).copy()
        first_kmax = self.schedule.first_kmax()
        return State(
            maps=maps,
            sigma2=np.stack([n.spectra() for n in noise]),
            tau2=np.zeros((self.n_halves, 1, shells)),
            fsc=np.zeros(shells),
            pdf_class=np.ones((self.n_halves, 1)),
            offset_sigma=max(self.options.offset_range / 2, float(np.sqrt((self.poses.origins**2).mean())), 0.5),
            kmax=first_kmax,
            score_kmax=self.schedule.first_shell(),
            resolution_shell=self.schedule.first_shell(),
        )

    def _solvent_mask(self) -> FloatArray:
        """What the references are multiplied by: the mask given, else the sphere if asked for, else one."""
        if self.inputs.solvent_mask is not None:
            return self.inputs.solvent_mask
        return self.sphere if self.options.flatten_solvent else np.ones((), np.float32)

    def _reference(self, state: State, half: int, kmax: int) -> Reference:
        transforms = [reference_transform(m, self.options.pad, kmax) for m in state.maps[half]]
        log_pdf = np.log(np.maximum(state.pdf_class[half], 1e-10)).astype(np.float32)
        return Reference(
            to_device(np.stack(transforms), self.device),
            self.options.pad,
            to_device(log_pdf, self.device),
            self.reference_radius,
        )

    def _needs_scale(self, state: State) -> bool:
        """Measure the grey scale of the reference against some images; say so if it must be fitted."""
        step = self.schedule.step(state, fit_scale=True)
        indices = self.half_indices(0)
        indices = np.sort(np.random.default_rng(self.options.random_seed).permutation(indices)[:PROBE_PARTICLES])
        sums, _ = self._expectation(state, step, 0, indices, None)
        scale = self._measured_scale(sums, step.score_kmax)
        if SCALE_TRUSTED[0] < scale < SCALE_TRUSTED[1]:
            return False
        self.job.say(
            f"the reference's grey scale is {1 / max(scale, 1e-9):.3g} times that of the images: "
            "the first iteration fits it, as with --firstiter_cc"
        )
        return True

    def _measured_scale(self, sums: Sums, kmax: int) -> float:
        shells = slice(1, kmax + 1)
        return float(sums.signal_cross[:, shells].sum() / max(sums.signal_power[:, shells].sum(), 1e-30))

    def _rescue(self, state: State) -> None:
        """Search poses globally and take over those that no local search from the present ones would find.

        The maps stay as they are: poses within reach are already finer than this search makes them. A sample goes
        first; where hardly any of its poses move, the others are left alone.
        """
        step = self.schedule.step(state, fit_scale=False)
        found = self._search_again(state, step, *(self._rescue_sample(h) for h in range(self.n_halves)))
        if found.mean() >= RESCUE_WORTH:
            rest = [np.setdiff1d(self.half_indices(h), self._rescue_sample(h)) for h in range(self.n_halves)]
            found = np.concatenate([found, self._search_again(state, step, *rest)])
        self.schedule.rescued(float(found.mean()))
        self.job.say(
            f"global search before convergence: {found.sum()} of {len(found)} particles moved "
            f"by more than {self.schedule.reach:.1f}°"
        )

    def _rescue_sample(self, half: int) -> Indices:
        """The particles of a half set that a global search tries first."""
        indices = np.sort(self.half_indices(half))
        return indices[:: max(1, len(indices) // RESCUE_SAMPLE)]

    def _search_again(self, state: State, step: Step, *halves: Indices) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which of the particles of each half set moved; their new poses are taken over."""
        bar = self.job.progress(sum(len(h) for h in halves), "global search")
        found = []
        for half, indices in enumerate(halves):
            found += self._expectation(state, step, half, indices, bar)[1]
        bar.close()
        indices = np.concatenate([i for i, _ in found])
        rotations, origins = (np.concatenate([getattr(e, n) for _, e in found]) for n in ("rotations", "origins"))
        change = angular_distance(self.poses.rotations[indices], rotations, self.schedule.operators)
        moved: np.ndarray[Any, np.dtype[np.bool_]] = change > self.schedule.reach
        self.poses.rotations[indices[moved]], self.poses.origins[indices[moved]] = rotations[moved], origins[moved]
        return moved

    def _iterate(self, state: State) -> tuple[State, Iteration]:
        """One iteration: both half sets, new maps, new spectra, the next plan."""
        start = time.perf_counter()
        fit_scale = self.fit_scale and state.iteration == 0
        step = self.schedule.step(state, fit_scale)
        sums, updates = [], []
        bar = self.job.progress(self.inputs.n_particles, f"iteration {state.iteration + 1}")
        for half in range(self.n_halves):
            half_sums, estimates = self._expectation(state, step, half, self.half_indices(half), bar)
            sums.append(self.job.comm.sum(half_sums))
            updates += estimates
        bar.close()
        candidates = sum(s.candidates for s in sums) / self.inputs.n_particles
        final = self.schedule.progress.final
        maps = reconstruct_halves(
            sums,
            self.schedule.operators,
            self.box,
            self.options.pad,
            step.kmax,
            step.score_kmax,
            self.options.tau2_fudge,
            self.sphere,
            self._join_shell(),
            join=final,
        )
        median_angle, median_offset = take_over(self.poses, updates, self.options.norm, self.schedule.operators)
        state = self._next_state(state, sums, maps, step)
        self.schedule.advance(state, median_angle)
        done = Iteration(
            step, maps, median_angle, median_offset * self.pixel_size, time.perf_counter() - start, candidates
        )
        output.write_iteration(
            self.job.rootname, self.inputs, self.options, state, self.poses, self.group_scale, self.schedule
        )
        self.job.resume_from = output.optimiser_path(self.job.rootname, state.iteration)
        return state, done

    def _expectation(
        self, state: State, step: Step, half: int, indices: Indices, bar: Any
    ) -> tuple[Sums, list[tuple[Indices, Estimates]]]:
        """Expectation step and sums of one half set; poses are not changed yet."""
        reference = self._reference(state, half, self.schedule.largest_kmax)
        uniform = draw_uniform(self.options.random_seed, state.iteration, self.inputs.n_particles)
        return self.sweep.run(
            reference, step, self.poses, state.sigma2[half], self.group_scale[half], indices, uniform, bar
        )

    def _join_shell(self) -> int:
        limit = self.inputs.low_resol_join_halves
        if self.n_halves == 1 or limit <= 0 or self.schedule.progress.final:
            return 0
        return int(self.box * self.pixel_size / limit)

    def _next_state(self, state: State, sums: list[Sums], maps: Maps, step: Step) -> State:
        """Spectra, scales, resolution and accuracies that follow from the sums and maps."""
        masked = maps.regularised * self._solvent_mask()
        total = sum(s.images.sum() for s in sums)
        if self.options.scale:
            update_group_scale(self.group_scale, sums, step.score_kmax)
        new = State(
            maps=masked.astype(np.float32),
            sigma2=np.stack([noise_spectra(s, state.sigma2[h]) for h, s in enumerate(sums)]),
            tau2=maps.tau2,
            fsc=maps.halves.curve,
            pdf_class=np.stack([s.class_mass / s.class_mass.sum() for s in sums]),
            offset_sigma=max(0.5, float(np.sqrt(sum(s.offset_square for s in sums) / (2 * total)))),
            kmax=step.kmax,
            score_kmax=step.score_kmax,
            resolution_shell=maps.halves.shell,
            iteration=state.iteration + 1,
            ave_pmax=sum(s.pmax for s in sums) / total,
            log_likelihood=sum(s.log_likelihood for s in sums),
        )
        new.accuracy_rotations, new.accuracy_offsets = self._accuracy(new)
        return new

    def _accuracy(self, state: State) -> tuple[float, float]:
        """Expected accuracy of rotations (degrees) and shifts (pixels), the mean over the half sets."""
        found, counts = [], []
        for half in range(self.n_halves):
            indices = np.sort(self.half_indices(half)[:: max(1, self.inputs.n_particles // ACCURACY_PARTICLES // 2)])
            kmax = max(2, state.score_kmax)
            reference = self._reference(state, half, kmax)
            rng = np.random.default_rng((self.options.random_seed, state.iteration, 3))
            for part, images in self.sweep.batches(indices[:ACCURACY_PARTICLES]):
                batch = self.prepare.batch(images, part, self.poses, state.sigma2[half], self.group_scale[half], kmax)
                found.append(estimate_accuracy(batch, reference, self.poses.rotations[part], kmax, rng))
                counts.append(len(part))
        angle, offset = np.average(found, axis=0, weights=counts)
        return float(angle), float(offset)

    def _report(self, state: State, done: Iteration) -> None:
        """The line of an iteration."""
        resolution = shell_to_resolution(state.resolution_shell, self.box, self.pixel_size)
        last, px = done.step.levels[-1], self.pixel_size
        kind = "local" if done.step.local else "global"
        moved = "" if np.isnan(done.median_offset) else f", moved {done.median_angle:.2f}° {done.median_offset:.2f} Å"
        self.job.say(
            f"iteration {state.iteration}: resolution {resolution:.2f} Å, {kind} search to "
            f"{healpix.angular_step(last.order):.2f}° {last.offset_step * px:.2f} Å, "
            f"current size {2 * done.step.kmax}{moved}, "
            f"accuracy {state.accuracy_rotations:.2f}° {state.accuracy_offsets * px:.2f} Å, "
            f"Pmax {state.ave_pmax:.2f}, {done.candidates:.0f} poses/particle, {done.seconds:.1f} s"
        )
