"""The loop that every refinement job is: expectation, maximisation, new state, until the schedule is done."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from spa import healpix
from spa.em import output
from spa.em.accuracy import UNKNOWN, estimate_accuracy, mean_accuracy
from spa.em.classes import centred, random_classes, reconstruct_classes, turned
from spa.em.expectation import Reference, Step
from spa.em.folds import Folds, Grid, make_folds
from spa.em.images import InitialNoise, Preparer, unlike_the_others
from spa.em.inputs import Inputs
from spa.em.maximisation import Estimates, Maps, draw_uniform, noise_spectra, reconstruct_halves
from spa.em.report import Iteration, iteration_line
from spa.em.schedule import MAX_ITERATIONS, Schedule, particle_radius
from spa.em.settings import SearchOptions
from spa.em.state import FloatArray, State, Sums
from spa.em.sweep import Indices, Sweep, unaligned_averages
from spa.em.updates import measured_scale, take_over, update_group_scale
from spa.errors import InputError
from spa.euler import angular_distance
from spa.fourier import low_pass, reference_transform
from spa.job import Job
from spa.kernels.backend import device_memory, host_memory, to_device, use_device
from spa.mask import soft_sphere, support_radius

PROBE_PARTICLES = 200
"""Particles on which the grey scale of the reference is measured."""
ACCURACY_PARTICLES = 100
"""Particles per half set on which the accuracy of the poses is estimated."""
ACCURACY_PER_CLASS = 20
"""The same for each of several classes."""
SCALE_TRUSTED = (0.67, 1.5)
"""Grey scales of the reference, relative to the images, that need no fitting."""
RESCUE_SAMPLE = 200
"""Particles of each half set that the global search before convergence tries first."""
RESCUE_WORTH = 0.01
"""Share of that sample that must move for the search to go on with all others."""
DETERMINED = 0.1
"""Share of its probability below which an average particle's likeliest pose is in doubt; good data end above 0.3."""


class Engine:
    """Expectation-maximisation over one or two half sets.

    Parameters
    ----------
    options : what the user asked for.
    inputs : particles, images, reference and masks, checked.
    schedule : what each iteration does.
    n_halves : 2 for gold-standard refinement, 1 for classification.
    job : where output and messages go.
    center_classes : whether 2D references are centred after each iteration, and their images with them.
    folds : parts of the particles that are compared with classes of their own, or None.
    fit_scale : whether the first iteration fits the grey scale of the references; None: where it is far from the
        images'.
    """

    def __init__(
        self,
        options: SearchOptions,
        inputs: Inputs,
        schedule: Schedule,
        n_halves: int,
        job: Job,
        fit_scale: bool | None = None,
        center_classes: bool = False,
        folds: Folds | None = None,
    ) -> None:
        self.options, self.inputs = options, inputs
        self.n_halves = n_halves
        self.job, self.rootname = job, job.rootname
        self.box, self.pixel_size = inputs.box_size, inputs.pixel_size
        self.device = job.devices[0] if job.devices else None
        self.schedule, self.folds = schedule, folds or make_folds(0, np.arange(inputs.n_particles), 1)
        self.ndim = inputs.references.ndim - 1
        self.radius = particle_radius(options, self.box, self.pixel_size)
        edge = min(5.0, self.box / 2 - self.radius)
        self.sphere = np.asarray(soft_sphere(self.box, self.radius, edge, self.ndim))
        circle = np.asarray(soft_sphere(self.box, self.radius, edge, 2))
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
        memory = int(options.mem * 2**30) or (device_memory(self.device) or host_memory()) // 2
        self.sweep = Sweep(inputs, self.prepare, schedule.search, options.pad, memory, job.check_abort, self.device)
        self.poses = inputs.first_poses()
        if not options.norm:
            self.poses.norm[:] = 1
        self.final_map = inputs.references[0]
        self.reference_radius = support_radius(self._solvent_mask(), self.box, self.ndim)
        self.running: list[Sums] = []
        self.group_scale: FloatArray = np.ones((n_halves, inputs.n_groups))
        self.fit_scale = bool(fit_scale)
        self._ask_scale = fit_scale is None
        self.center_classes = center_classes

    def resumed(self, path: str) -> State:
        """The state that an optimiser file names; the poses and the schedule take up from there, too."""
        state, self.poses, self.group_scale = output.read_state(path, self.inputs, self.schedule)
        self.running = output.read_running(path)
        output.read_folds(path, self.folds)
        self.job.say(f"continuing after iteration {state.iteration}")
        return state

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
                raise InputError(f"{self.options.i}: searches are local, but it has no angles to start from")
            state = self._first_state()
            if self._ask_scale:
                self.fit_scale = self._needs_scale(state)
        while not self.schedule.progress.finished:
            if self.schedule.progress.rescue:
                self._rescue(state)
            state, done = self._iterate(state)
            self.job.say(iteration_line(state, done, self.box, self.pixel_size))
            if done.maps.joined is not None and done.maps.unfiltered is not None:
                self._finish(state, done.maps.unfiltered, done.maps.joined)
        if self.n_halves == 1:
            self._write(self.rootname, state)
        if self.schedule.progress.exhausted:
            self.job.warn(f"not converged after {MAX_ITERATIONS} iterations: poses or resolution were still changing")
        if state.ave_pmax < DETERMINED and self.n_halves == 2:
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
            self.rootname,
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
        if damaged := unlike_the_others(power, self.options.i):
            self.job.warn(damaged)
        shells, n_classes = self.box // 2 + 1, len(self.inputs.references)
        sigma2 = np.stack([n.spectra() for n in noise])
        references = self._unaligned(sigma2[0], n_classes) if self.ndim == 2 else self.inputs.references
        maps = np.stack([(references * self._solvent_mask()).astype(np.float32)] * self.n_halves)
        return State(
            maps=maps,
            sigma2=sigma2,
            tau2=np.zeros((self.n_halves, n_classes, shells)),
            ssnr=np.zeros((self.n_halves, n_classes, shells)),
            fsc=np.zeros(shells),
            pdf_class=np.full((self.n_halves, n_classes), 1 / n_classes),
            offset_sigma=max(self.options.offset_range / 2, float(np.sqrt((self.poses.origins**2).mean())), 0.5),
            kmax=self.schedule.first_kmax(),
            score_kmax=self.schedule.first_shell(),
            resolution_shell=self.schedule.first_shell(),
        )

    def _unaligned(self, sigma2: FloatArray, n_classes: int) -> FloatArray:
        """Averages of random parts of the images as they come."""
        classes = random_classes(self.options.random_seed, self.inputs.n_particles, n_classes)
        kmax = self.schedule.first_kmax()
        averages = unaligned_averages(self.sweep, self.half_indices(0), self.poses, sigma2, classes, kmax)
        return np.asarray(low_pass(averages, self.pixel_size, self.schedule.first_resolution, ndim=2))

    def _solvent_mask(self) -> FloatArray:
        """What the references are multiplied by: the mask given, else the sphere if asked for, else one."""
        if self.inputs.solvent_mask is not None:
            return self.inputs.solvent_mask
        flat = self.options.flatten_solvent or self.folds.focus is not None
        return self.sphere if flat else np.ones((), np.float32)

    def _reference(self, state: State, half: int, kmax: int, n_classes: int | None = None) -> Reference:
        transforms = [reference_transform(m, self.options.pad, kmax) for m in state.maps[half][:n_classes]]
        log_pdf = np.log(np.maximum(state.pdf_class[half][:n_classes], 1e-10)).astype(np.float32)
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
        scale = measured_scale(sums, step.score_kmax)
        if SCALE_TRUSTED[0] < scale < SCALE_TRUSTED[1]:
            return False
        self.job.say(
            f"the reference's grey scale is {1 / max(scale, 1e-9):.3g} times that of the images: "
            "the first iteration fits it, as with --firstiter_cc"
        )
        return True

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
        n_particles = self.inputs.n_particles if step.subset is None else len(step.subset)
        bar = self.job.progress(n_particles, f"iteration {state.iteration + 1}")
        for half in range(self.n_halves):
            indices = self.half_indices(half)
            if step.subset is not None:
                indices = indices[np.isin(indices, step.subset)]
            parts = []
            for part, own in self.folds.parts(state, step, indices):
                found, estimates = self._expectation(own, step, half, part, bar)
                parts.append(self.job.comm.sum(found))
                updates += estimates
            sums.append(sum(parts[1:], parts[0]))
        bar.close()
        candidates = sum(s.candidates for s in sums) / sum(s.images.sum() for s in sums)
        if step.momentum > 0 and self.running:
            sums = [now + before.decayed(step.momentum) for now, before in zip(sums, self.running, strict=True)]
        self.running = sums if step.subset is not None else []
        final, grid = self.schedule.progress.final, (self.schedule.operators, self.box, self.options.pad, step.kmax)
        if self.n_halves == 1:
            mask = np.broadcast_to(self._solvent_mask(), self.sphere.shape)
            how = Grid(*grid, self.options.tau2_fudge, mask, self.sphere)
            maps = reconstruct_classes(sums[0], *how.arguments, step.noise_share)
            self.folds.update(parts, maps.regularised[0], how, self.pixel_size, step.bootstrap)
        else:
            maps = reconstruct_halves(
                sums, *grid, step.score_kmax, self.options.tau2_fudge, self.sphere, self._join_shell(), join=final
            )
        before, known = self.poses.class_number.copy(), self.poses.known.copy()
        median_angle, median_offset = take_over(self.poses, updates, self.options.norm, self.schedule.operators)
        state = self._next_state(state, sums, maps, step)
        if self.center_classes:
            state.maps[0], moved = centred(state.maps[0], self._solvent_mask())
            self.poses.origins += turned(self.poses.rotations, moved[self.poses.class_number])
        seen = np.concatenate([indices for indices, _ in updates])
        again = seen[known[seen]]
        if state.iteration > 1 and len(again):
            state.class_changes = float((self.poses.class_number != before)[again].mean())
        self.schedule.advance(state, median_angle)
        seconds = time.perf_counter() - start
        done = Iteration(step, maps, median_angle, median_offset * self.pixel_size, seconds, candidates)
        if self.running:
            output.write_running(self.rootname, state.iteration, self.running)
        output.write_folds(self.rootname, state.iteration, self.folds)
        self._write(f"{self.rootname}_it{state.iteration:03d}", state)
        self.job.resume_from = output.optimiser_path(self.rootname, state.iteration)
        return state, done

    def _expectation(
        self, state: State, step: Step, half: int, indices: Indices, bar: Any
    ) -> tuple[Sums, list[tuple[Indices, Estimates]]]:
        """Expectation step and sums of one half set; poses are not changed yet."""
        n_references = state.n_classes if step.parts is None else len(step.parts.classes)
        reference = self._reference(state, half, self.schedule.largest_kmax, n_references)
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
        total = sum(s.images.sum() for s in sums)
        if self.options.scale:
            update_group_scale(self.group_scale, sums, step.score_kmax)
        new = State(
            maps=self.folds.masked(maps.regularised, self._solvent_mask(), sums),
            sigma2=np.stack([noise_spectra(s, state.sigma2[h]) for h, s in enumerate(sums)]),
            tau2=maps.tau2,
            ssnr=maps.ssnr,
            fsc=maps.halves.curve,
            pdf_class=np.stack([s.class_mass / s.class_mass.sum() for s in sums]),
            class_entropy=sum(s.class_entropy for s in sums) / total / max(np.log(step.n_classes), 1e-9),
            offset_sigma=max(0.5, float(np.sqrt(sum(s.offset_square for s in sums) / (2 * total)))),
            kmax=step.kmax,
            score_kmax=step.score_kmax,
            resolution_shell=maps.halves.shell,
            iteration=state.iteration + 1,
            ave_pmax=sum(s.pmax for s in sums) / total,
            log_likelihood=sum(s.log_likelihood for s in sums),
        )
        new.class_accuracy = self._accuracy(new)
        new.accuracy_rotations, new.accuracy_offsets = mean_accuracy(new.pdf_class.mean(0), new.class_accuracy)
        return new

    def _accuracy(self, state: State) -> FloatArray:
        """Expected accuracy of rotations (degrees) and shifts (pixels), (n_classes, 2), the mean over the half sets."""
        kmax = max(2, state.score_kmax)
        found, counts = np.zeros((2, state.n_classes)), np.zeros(state.n_classes)
        for half in range(self.n_halves):
            indices = np.sort(self.half_indices(half)[:: max(1, self.inputs.n_particles // ACCURACY_PARTICLES // 2)])
            reference = self._reference(state, half, kmax)
            rng = np.random.default_rng((self.options.random_seed, state.iteration, 3))
            for c in range(state.n_classes):
                mine = indices[:ACCURACY_PARTICLES] if state.n_classes == 1 else self._members(half, c)
                for part, images in self.sweep.batches(mine) if len(mine) else ():
                    scale = self.group_scale[half]
                    batch = self.prepare.batch(images, part, self.poses, state.sigma2[half], scale, kmax)
                    classes = np.full(len(part), c, np.int32)
                    angle, offset = estimate_accuracy(batch, reference, classes, self.poses.rotations[part], kmax, rng)
                    found[:, c] += len(part) * np.array([angle, offset])
                    counts[c] += len(part)
        return np.where(counts > 0, found / np.maximum(counts, 1), UNKNOWN).T

    def _members(self, half: int, number: int) -> Indices:
        """A few particles of a class."""
        indices = np.sort(self.half_indices(half))
        mine = self.poses.known[indices] & (self.poses.class_number[indices] == number)
        return np.asarray(indices[mine][:ACCURACY_PER_CLASS])

    def _write(self, stem: str, state: State) -> None:
        output.write_state(stem, self.inputs, self.options, state, self.poses, self.group_scale, self.schedule)
