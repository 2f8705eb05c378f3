"""The files of simulated particles, micrographs and movies: what a user would have, and the truth beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spa import micrograph_simulation, movie_simulation, particle_simulation, simulation
from spa.io import mrc, star, tiff_writer
from spa.io.files import project_path
from spa.io.particle_io import to_star
from spa.io.star import Block, StarFile
from spa.kernels.backend import Array
from spa.micrograph_scene import Recipe, Scene
from spa.micrograph_simulation import Image
from spa.movie_simulation import Detector, Motion
from spa.particles import OpticsGroup, Particles

Tilts = Sequence[tuple[float, float]]
"""Beam tilt of each optics group along x and y, mrad; empty where there is none."""


def write_maps(folder: Path, volumes: NDArray[np.float32], pixel_size: float) -> None:
    """Write truth_map.mrc, or truth_map1.mrc and so on for several volumes (n, box, box, box)."""
    for i, volume in enumerate(volumes):
        name = "truth_map.mrc" if len(volumes) == 1 else f"truth_map{i + 1}.mrc"
        mrc.write_volume(folder / name, volume, pixel_size)


def write_particles(folder: Path, particles: Particles, tilts: Tilts) -> None:
    """Write truth_particles.star, and particles.star without poses, classes and half sets."""
    for name, kept in (
        ("truth_particles.star", particles),
        ("particles.star", particle_simulation.without_truth(particles)),
    ):
        found = to_star(kept)
        _add_tilts(found["optics"], tilts)
        star.write(folder / name, found)


def write_stacks(
    recipe: particle_simulation.Recipe,
    particles: Particles,
    projector: simulation.Projector,
    keep: bool,
    between: Callable[[int], object],
) -> NDArray[np.float64]:
    """Write one stack per micrograph, but with `keep` none that is there; returns what the images were divided by.

    `between` is called before each batch and each stack with the number of particles done since.
    """
    deviations, spectrum = [], recipe.spectrum()
    for stack, members in _stacks(particles):
        if not (keep and stack.is_file()):
            with mrc.stack_writer(stack, len(members), recipe.box_size, recipe.pixel_size) as writer:
                for start in range(0, len(members), recipe.batch_size):
                    between(0)
                    part = members[start : start + recipe.batch_size]
                    images = particle_simulation.project(recipe, particles, projector, part)
                    images += simulation.particle_noise(part, spectrum, recipe.seed)
                    images, _, deviation = simulation.normalise(images, recipe.radius)
                    writer.append(images)
                    deviations.append(deviation)
        between(len(members))
    return np.concatenate(deviations) if deviations else np.zeros(0)


@dataclass(frozen=True)
class Files:
    """Where what belongs to the micrograph `name` goes; `movie_suffix` is "tiff", "mrcs" or, without a movie, ""."""

    folder: Path
    name: str
    movie_suffix: str = ""

    @property
    def micrograph(self) -> Path:
        """The image."""
        return self.folder / "micrographs" / f"{self.name}.mrc"

    @property
    def movie(self) -> Path:
        """The frames."""
        return self.folder / "movies" / f"{self.name}.{self.movie_suffix}"

    @property
    def coordinates(self) -> Path:
        """The truth about the particles."""
        return self.folder / "truth_coordinates" / f"{self.name}.star"

    @property
    def motion(self) -> Path:
        """The truth about the motion."""
        return self.folder / "truth_motion" / f"{self.name}.star"

    def complete(self) -> bool:
        """Whether the file that is written last is there."""
        return (self.movie if self.movie_suffix else self.micrograph).is_file()


def write_tables(files: Sequence[Files], optics: Sequence[OpticsGroup], tilts: Tilts, scenes: Sequence[Scene]) -> None:
    """Write micrographs.star, truth_ctf.star (the same with CTFs at the particles' mean height) and movies.star."""
    folder, groups = files[0].folder, [optics[scene.optics_index].number for scene in scenes]
    block = _optics(optics, tilts)
    columns: dict[str, Any] = {
        "rlnMicrographName": [project_path(file.micrograph) for file in files],
        "rlnOpticsGroup": groups,
    }
    star.write(folder / "micrographs.star", StarFile([block, Block.table("micrographs", columns)]))
    u, v = (np.array([getattr(scene, name) for scene in scenes]) for name in ("defocus_u", "defocus_v"))
    ctf: dict[str, Any] = {
        "rlnDefocusU": u,
        "rlnDefocusV": v,
        "rlnCtfAstigmatism": u - v,
        "rlnDefocusAngle": [scene.defocus_angle for scene in scenes],
        "rlnPhaseShift": [scene.phase_shift for scene in scenes],
        "rlnCtfBfactor": [scene.bfactor for scene in scenes],
    }
    star.write(folder / "truth_ctf.star", StarFile([block, Block.table("micrographs", columns | ctf)]))
    if files[0].movie_suffix:
        block.drop("rlnMicrographPixelSize")
        columns = {"rlnMicrographMovieName": [project_path(file.movie) for file in files], "rlnOpticsGroup": groups}
        star.write(folder / "movies.star", StarFile([block, Block.table("movies", columns)]))


def write_micrograph(files: Files, recipe: Recipe, scene: Scene, image: Image) -> None:
    """Write a micrograph from its expected image, and the truth about its particles."""
    _write_coordinates(files.coordinates, scene)
    mrc.write_volume(files.micrograph, micrograph_simulation.counted(recipe, scene, image), recipe.pixel_size)


def write_movie(
    files: Files, recipe: Recipe, movie: movie_simulation.Recipe, scene: Scene, detector: Detector, image: Array
) -> None:
    """Write a movie from the expected image of its specimen at rest, on any device, and the truth about its motion."""
    motion = movie_simulation.draw_motion(movie, recipe.pixel_size, recipe.seed, scene.number)
    _write_motion(files, recipe, movie, scene, motion, detector)
    frames = movie_simulation.frames(recipe, movie, scene, motion, detector, image)
    if files.movie_suffix == "tiff":
        tiff_writer.write_tiff(files.movie, frames, movie.n_frames, recipe.shape)
    else:
        tiff_writer.write_mrcs(files.movie, frames, movie.n_frames, recipe.shape, recipe.pixel_size)


def _stacks(particles: Particles) -> Iterator[tuple[Path, NDArray[np.int64]]]:
    """Each stack with the particles in it, in order."""
    names = np.array([name.rpartition("@")[2] for name in particles.image_name])
    starts = np.flatnonzero(np.concatenate([[True], names[1:] != names[:-1]]))
    for start, stop in zip(starts, [*starts[1:], len(names)], strict=True):
        yield Path(names[start]), np.arange(start, stop)


def _optics(optics: Sequence[OpticsGroup], tilts: Tilts) -> Block:
    """data_optics of micrographs and movies that are not binned."""
    block = Block.table(
        "optics",
        {
            "rlnOpticsGroupName": [group.name for group in optics],
            "rlnOpticsGroup": [group.number for group in optics],
            "rlnMicrographOriginalPixelSize": [group.pixel_size for group in optics],
            "rlnMicrographPixelSize": [group.pixel_size for group in optics],
            "rlnVoltage": [group.voltage for group in optics],
            "rlnSphericalAberration": [group.cs for group in optics],
            "rlnAmplitudeContrast": [group.q0 for group in optics],
        },
    )
    _add_tilts(block, tilts)
    return block


def _add_tilts(optics: Block, tilts: Tilts) -> None:
    if tilts:
        optics.set("rlnBeamTiltX", [x for x, _ in tilts])
        optics.set("rlnBeamTiltY", [y for _, y in tilts])


def _write_coordinates(path: Path, scene: Scene) -> None:
    """Centres in pixels, 0 the first pixel's, poses, CTFs and class of the particles of one micrograph."""
    particles = scene.particles
    columns = {
        "rlnCoordinateX": scene.coordinates[:, 0],
        "rlnCoordinateY": scene.coordinates[:, 1],
        "rlnAngleRot": particles.rot,
        "rlnAngleTilt": particles.tilt,
        "rlnAnglePsi": particles.psi,
        "rlnClassNumber": particles.class_number,
        "rlnDefocusU": particles.defocus_u,
        "rlnDefocusV": particles.defocus_v,
        "rlnDefocusAngle": particles.defocus_angle,
        "rlnPhaseShift": particles.phase_shift,
        "rlnCtfBfactor": particles.ctf_bfactor,
        "rlnOpticsGroup": particles.optics_values("number"),
    }
    star.write(path, StarFile([Block.table("", columns)]))


def _write_motion(
    files: Files, recipe: Recipe, movie: movie_simulation.Recipe, scene: Scene, motion: Motion, detector: Detector
) -> None:
    """The motion of one movie as RELION's motion correction writes what it finds.

    Shifts, in pixels of the movie, are those that put a frame's content back to where it was in the first frame:
    minus the motion. `global_shift` is that of the whole frame; `local_shift` what the place of each particle needs
    besides, in the order of the truth's coordinates. `hot_pixels` and `dead_pixels` are the detector's.
    """
    n_frames, n = movie.n_frames, len(scene.coordinates)
    numbers = np.arange(1, n_frames + 1)
    general: dict[str, str | int | float] = {
        "rlnImageSizeX": recipe.shape[1],
        "rlnImageSizeY": recipe.shape[0],
        "rlnImageSizeZ": n_frames,
        "rlnMicrographMovieName": project_path(files.movie),
        "rlnMicrographBinning": 1.0,
        "rlnMicrographOriginalPixelSize": recipe.pixel_size,
        "rlnMicrographDoseRate": movie.dose / n_frames,
        "rlnMicrographPreExposure": 0.0,
        "rlnVoltage": recipe.optics[scene.optics_index].voltage,
        "rlnMicrographStartFrame": 1,
        "rlnMotionModelVersion": 0,
    }
    local = {
        "rlnMicrographFrameNumber": np.tile(numbers, n),
        "rlnCoordinateX": np.repeat(scene.coordinates[:, 0], n_frames),
        "rlnCoordinateY": np.repeat(scene.coordinates[:, 1], n_frames),
        **_shifts(motion.local(scene.coordinates, recipe.shape).transpose(1, 0, 2).reshape(-1, 2)),
    }
    blocks = [
        Block.pairs("general", general),
        Block.table("global_shift", {"rlnMicrographFrameNumber": numbers, **_shifts(motion.drift)}),
        Block.table("local_shift", local),
        _pixels("hot_pixels", detector.hot),
        _pixels("dead_pixels", detector.dead),
    ]
    star.write(files.motion, StarFile(blocks))


def _shifts(motion: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    back = 0.0 - motion
    return {"rlnMicrographShiftX": back[:, 0], "rlnMicrographShiftY": back[:, 1]}


def _pixels(name: str, where: NDArray[np.bool_]) -> Block:
    y, x = np.nonzero(where)
    return Block.table(name, {"rlnCoordinateX": x.astype(float), "rlnCoordinateY": y.astype(float)})
