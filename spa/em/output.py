"""The files of an iteration and of a finished run under RELION's names, and the way back from them."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from spa import euler, healpix
from spa.em.folds import Folds
from spa.em.inputs import Inputs
from spa.em.schedule import Progress, Schedule
from spa.em.settings import SearchOptions
from spa.em.state import FloatArray, Poses, State, Sums
from spa.errors import InputError
from spa.fsc import shell_to_resolution
from spa.io import mrc, progress_plots, star
from spa.io.files import project_path, write_whole
from spa.io.particle_io import write_particles
from spa.io.star import Block, StarFile
from spa.kernels.backend import to_host

_ORIENTATION_ORDER = 3
_PROGRESS = "spaProgress"
_STATE_NUMBERS = {
    "spaSigmaOffsetsPixels": "offset_sigma",
    "rlnAveragePmax": "ave_pmax",
    "rlnLogLikelihood": "log_likelihood",
    "spaClassEntropy": "class_entropy",
    "rlnChangesOptimalClasses": "class_changes",
    "spaNextKmax": "kmax",
    "spaNextScoreKmax": "score_kmax",
    "spaResolutionShell": "resolution_shell",
    "spaAccuracyRotations": "accuracy_rotations",
    "spaAccuracyOffsetsPixels": "accuracy_offsets",
}


def optimiser_path(rootname: str, iteration: int) -> Path:
    """The file from which `--continue` takes up after an iteration."""
    return Path(f"{rootname}_it{iteration:03d}_optimiser.star")


def write_state(
    stem: str,
    inputs: Inputs,
    options: SearchOptions,
    state: State,
    poses: Poses,
    group_scale: FloatArray,
    schedule: Schedule,
) -> None:
    """Write data, references, models, sampling and the optimiser file that names them; last, with halves, a picture."""
    _write_data(f"{stem}_data.star", inputs, poses)
    halves = [f"_half{h + 1}" for h in range(state.n_halves)] if state.n_halves == 2 else [""]
    for half, name in enumerate(halves):
        write_references(f"{stem}{name}", state.maps[half], inputs.pixel_size)
        write_model(f"{stem}{name}_model.star", stem + name, inputs, options, state, half, poses, group_scale[half])
    _write_sampling(f"{stem}_sampling.star", options, schedule)
    _write_optimiser(f"{stem}_optimiser.star", stem, halves, options, state, schedule)
    if state.n_halves == 2:
        progress_plots.write(stem.rsplit("_it", 1)[0], state.iteration)


def write_references(stem: str, maps: FloatArray, pixel_size: float) -> None:
    """Write the references of all classes, 2D ones into one stack."""
    if maps.ndim == 3:
        mrc.write_stack(f"{stem}_classes.mrcs", maps, pixel_size)
    else:
        for name, volume in zip(_reference_paths(stem, maps), maps, strict=True):
            mrc.write_volume(name, volume, pixel_size)


def _reference_paths(stem: str, maps: FloatArray) -> list[str]:
    return [f"{stem}_class{c + 1:03d}.mrc" for c in range(len(maps))]


def _reference_names(stem: str, maps: FloatArray) -> list[str]:
    if maps.ndim == 3:
        return [f"{c + 1:06d}@{project_path(f'{stem}_classes.mrcs')}" for c in range(len(maps))]
    return [project_path(path) for path in _reference_paths(stem, maps)]


def write_final(
    rootname: str,
    inputs: Inputs,
    options: SearchOptions,
    state: State,
    poses: Poses,
    group_scale: FloatArray,
    unfiltered: FloatArray,
    joined: FloatArray,
    schedule: Schedule,
) -> None:
    """Write the joined map, the two unfiltered half maps and the last data, model and optimiser files."""
    _write_data(f"{rootname}_data.star", inputs, poses)
    for half in range(2):
        mrc.write_volume(f"{rootname}_half{half + 1}_class001_unfil.mrc", unfiltered[half, 0], inputs.pixel_size)
    mrc.write_volume(f"{rootname}_class001.mrc", joined[0], inputs.pixel_size)
    write_model(f"{rootname}_model.star", rootname, inputs, options, state, 0, poses, group_scale[0])
    _write_sampling(f"{rootname}_sampling.star", options, schedule)
    _write_optimiser(f"{rootname}_optimiser.star", rootname, [""], options, state, schedule)


def _write_data(path: str, inputs: Inputs, poses: Poses) -> None:
    """The particle table with what the refinement found."""
    rot, tilt, psi = euler.angles(poses.rotations).T
    origin_x, origin_y = poses.origins.T * inputs.pixel_size
    inputs.particles.update(
        rot=rot,
        tilt=tilt,
        psi=psi,
        origin_x_angst=origin_x,
        origin_y_angst=origin_y,
        class_number=poses.class_number + 1,
        group_number=inputs.groups + 1,
        norm_correction=poses.norm,
        max_value_prob=poses.pmax,
        log_likelihood=poses.log_likelihood,
        nr_significant=poses.nr_significant,
        half_set=inputs.half_set,
    )
    write_particles(path, inputs.particles)


def write_model(
    path: str,
    stem: str,
    inputs: Inputs,
    options: SearchOptions,
    state: State,
    half: int,
    poses: Poses,
    group_scale: FloatArray,
) -> None:
    """The model of one half set: spectra, resolution, group scales and orientation distribution.

    Notes
    -----
    rlnSigma2Noise and rlnReferenceTau2 are in RELION's units, whose transforms are divided by the number of
    pixels of an image.
    """
    box, px, shells = inputs.box_size, inputs.pixel_size, np.arange(inputs.box_size // 2 + 1)
    resolution = shell_to_resolution(state.resolution_shell, box, px)
    angstrom = np.array([999.0, *(shell_to_resolution(s, box, px) for s in shells[1:])])
    spectrum = {
        "rlnSpectralIndex": shells,
        "rlnResolution": shells / (box * px),
        "rlnAngstromResolution": angstrom,
    }
    general = {
        "rlnReferenceDimensionality": state.maps.ndim - 2,
        "rlnDataDimensionality": 2,
        "rlnOriginalImageSize": box,
        "rlnCurrentResolution": resolution,
        "rlnCurrentImageSize": 2 * state.kmax,
        "rlnPaddingFactor": float(options.pad),
        "rlnPixelSize": px,
        "rlnNrClasses": state.n_classes,
        "rlnNrBodies": 1,
        "rlnNrGroups": inputs.n_groups,
        "rlnNrOpticsGroups": inputs.n_optics,
        "rlnTau2FudgeFactor": options.tau2_fudge,
        "rlnNormCorrectionAverage": float(poses.norm.mean()),
        "rlnSigmaOffsetsAngst": state.offset_sigma * px,
        "rlnLogLikelihood": state.log_likelihood,
        "rlnAveragePmax": state.ave_pmax,
    }
    accuracy = state.class_accuracy
    if accuracy is None:
        accuracy = np.tile([state.accuracy_rotations, state.accuracy_offsets], (state.n_classes, 1))
    shells_reached = state.class_shells if state.n_halves == 1 else np.full(state.n_classes, state.resolution_shell)
    classes = Block.table(
        "model_classes",
        {
            "rlnReferenceImage": _reference_names(stem, state.maps[half]),
            "rlnClassDistribution": state.pdf_class[half],
            "rlnAccuracyRotations": accuracy[:, 0],
            "rlnAccuracyTranslationsAngst": accuracy[:, 1] * px,
            "rlnEstimatedResolution": [angstrom[s] for s in shells_reached],
        },
    )
    blocks = [Block.pairs("model_general", general), classes]
    for c in range(state.n_classes):
        columns = {
            **spectrum,
            "rlnSsnrMap": state.ssnr[half, c],
            "rlnGoldStandardFsc": state.fsc,
            "rlnReferenceTau2": _exact(state.tau2[half, c] / box**4),
        }
        blocks.append(Block.table(f"model_class_{c + 1}", columns))
    count = np.bincount(inputs.groups, minlength=inputs.n_groups)
    blocks.append(
        Block.table(
            "model_groups",
            {
                "rlnGroupNumber": np.arange(inputs.n_groups) + 1,
                "rlnGroupName": inputs.group_names,
                "rlnGroupNrParticles": count,
                "rlnGroupScaleCorrection": group_scale,
            },
        )
    )
    for number, sigma2 in enumerate(state.sigma2[half]):
        columns = {k: spectrum[k] for k in ("rlnSpectralIndex", "rlnResolution")}
        columns["rlnSigma2Noise"] = _exact(sigma2 / box**4)
        blocks.append(Block.table(f"model_optics_group_{number + 1}", columns))
    for c in range(state.n_classes if state.maps.ndim == 5 else 0):
        mine = (inputs.half_set == half + 1) | (state.n_halves == 1)
        pixel = healpix.vec2pix(_ORIENTATION_ORDER, poses.rotations[mine & (poses.class_number == c), 2])
        share = np.bincount(pixel, minlength=healpix.n_pixels(_ORIENTATION_ORDER)) / max(len(pixel), 1)
        blocks.append(Block.table(f"model_pdf_orient_class_{c + 1}", {"rlnOrientationDistribution": share}))
    star.write(path, StarFile(blocks))


def _write_sampling(path: str, options: SearchOptions, schedule: Schedule) -> None:
    general: dict[str, float | str] = {
        "rlnHealpixOrder": schedule.progress.order - options.oversampling,
        "rlnSymmetryGroup": schedule.symmetry,
        "rlnPsiStep": schedule.coarse_step,
        "rlnOffsetRange": options.offset_range * schedule.pixel_size,
        "rlnOffsetStep": options.offset_step * schedule.pixel_size,
    }
    star.write(path, StarFile([Block.pairs("sampling_general", general)]))


def _write_optimiser(
    path: str, stem: str, halves: list[str], options: SearchOptions, state: State, schedule: Schedule
) -> None:
    models = {
        f"rlnModelStarFile{'' if len(halves) == 1 else h + 1}": project_path(f"{stem}{name}_model.star")
        for h, name in enumerate(halves)
    }
    general: dict[str, float | str] = {
        "rlnOutputRootName": options.o,
        **models,
        "rlnExperimentalDataStarFile": project_path(f"{stem}_data.star"),
        "rlnOrientSamplingStarFile": project_path(f"{stem}_sampling.star"),
        "rlnCurrentIteration": state.iteration,
        "rlnRandomSeed": options.random_seed,
        "rlnParticleDiameter": options.particle_diameter,
        "rlnHasConverged": int(schedule.progress.finished),
    }
    numbers = {label: getattr(state, name) for label, name in _STATE_NUMBERS.items()}
    progress = {f"{_PROGRESS}{_camel(k)}": v for k, v in schedule.progress.as_dict().items()}
    as_numbers = {k: int(v) if isinstance(v, bool) else v for k, v in (numbers | progress).items()}
    star.write(path, StarFile([Block.pairs("optimiser_general", general | as_numbers)]))


def read_state(path: str, inputs: Inputs, schedule: Schedule) -> tuple[State, Poses, FloatArray]:
    """The state, poses and group scales (n_halves, n_groups) that an optimiser file points to; sets the schedule.

    Raises
    ------
    InputError
        If the file is not the optimiser file of an iteration, or the data do not fit.
    """
    block = star.read(path)["optimiser_general"]
    if "spaNextKmax" not in block:
        raise InputError(f"{path}: data_optimiser_general: expected the file of an iteration, run_itNNN_optimiser.star")
    known = {f"{_PROGRESS}{_camel(f.name)}": f for f in fields(Progress)}
    for label, field in known.items():
        present = getattr(schedule.progress, field.name)
        setattr(schedule.progress, field.name, type(present)(block.get_float(label, float(present))))
    labels = [label for label in ("rlnModelStarFile", "rlnModelStarFile1", "rlnModelStarFile2") if label in block]
    halves = [_read_half(block.get_text(label), inputs) for label in labels]
    numbers: dict[str, Any] = {name: block.get_float(label) for label, name in _STATE_NUMBERS.items()}
    numbers |= {name: int(numbers[name]) for name in ("kmax", "score_kmax", "resolution_shell")}
    state = State(
        maps=np.stack([h["maps"] for h in halves]),
        sigma2=np.stack([h["sigma2"] for h in halves]),
        tau2=np.stack([h["tau2"] for h in halves]),
        ssnr=np.stack([h["ssnr"] for h in halves]),
        fsc=halves[0]["fsc"],
        pdf_class=np.stack([h["pdf_class"] for h in halves]),
        iteration=block.get_integer("rlnCurrentIteration"),
        **numbers,
    )
    expected = inputs.references.shape
    if state.maps.shape[1:] != expected:
        wanted, found = (f"{s[0]} of {' x '.join(map(str, s[1:]))}" for s in (expected, state.maps.shape[1:]))
        raise InputError(f"{path}: expected references {wanted}, found {found}")
    poses = inputs.first_poses()
    poses.known = np.asarray(inputs.particles.nr_significant > 0)
    p = inputs.particles
    poses.pmax, poses.log_likelihood, poses.nr_significant = (
        p.max_value_prob,
        p.log_likelihood,
        p.nr_significant,
    )
    poses.class_number = (np.maximum(p.class_number, 1) - 1).astype(np.int32)
    return state, poses, np.stack([h["group_scale"] for h in halves])


def write_running(rootname: str, iteration: int, sums: list[Sums]) -> None:
    """The sums that fade into those of the next iterations, for `--continue`; the last two are kept."""
    arrays = {f"{f.name}_{h}": to_host(getattr(s, f.name)) for h, s in enumerate(sums) for f in fields(Sums)}

    def write(path: Path) -> None:
        with path.open("wb") as file:  # given a name, NumPy would change its ending
            np.savez(file, **arrays)

    write_whole(_running_path(str(optimiser_path(rootname, iteration))), write)
    _running_path(str(optimiser_path(rootname, iteration - 2))).unlink(missing_ok=True)


def read_running(path: str) -> list[Sums]:
    """The sums beside an optimiser file; none where the run had none."""
    beside = _running_path(path)
    if not beside.exists():
        return []
    with np.load(beside) as arrays:
        halves = range(len(arrays.files) // len(fields(Sums)))
        return [Sums(**{f.name: arrays[f"{f.name}_{h}"][()] for f in fields(Sums)}) for h in halves]


def write_folds(rootname: str, iteration: int, folds: Folds) -> None:
    """The maps that the parts of the particles are compared with next, for `--continue`; the last two are kept."""
    if folds.maps is None:
        return
    focus = {} if folds.focus is None else {"focus": folds.focus}
    arrays: dict[str, Any] = {"maps": folds.maps, "penalty": folds.penalty, **focus}

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(_folds_path(str(optimiser_path(rootname, iteration))), write)
    _folds_path(str(optimiser_path(rootname, iteration - 2))).unlink(missing_ok=True)


def read_folds(path: str, folds: Folds) -> None:
    """Take up the maps beside an optimiser file, if there are any."""
    beside = _folds_path(path)
    if beside.exists():
        with np.load(beside) as arrays:
            folds.maps, folds.penalty = arrays["maps"], arrays["penalty"]
            folds.focus = arrays.get("focus")


def _folds_path(optimiser: str) -> Path:
    return Path(optimiser.removesuffix("_optimiser.star") + "_folds.npz")


def _running_path(optimiser: str) -> Path:
    return Path(optimiser.removesuffix("_optimiser.star") + "_sums.npz")


def data_path(path: str) -> str:
    """The particle table that an optimiser file names."""
    return star.read(path)["optimiser_general"].get_text("rlnExperimentalDataStarFile")


def _read_half(path: str, inputs: Inputs) -> dict[str, FloatArray]:
    model, box = star.read(path), inputs.box_size
    classes = model["model_classes"]
    names = classes.text("rlnReferenceImage")
    flat = "@" in names[0]
    maps = mrc.read(names[0].partition("@")[2])[0] if flat else np.stack([mrc.read_volume(n)[0] for n in names])
    tables = [model[f"model_class_{c + 1}"] for c in range(len(classes))]
    noise = [model[f"model_optics_group_{g + 1}"].floats("rlnSigma2Noise") for g in range(inputs.n_optics)]
    return {
        "maps": maps,
        "ssnr": np.stack([t.floats("rlnSsnrMap") for t in tables]),
        "sigma2": np.stack(noise) * box**4,
        "tau2": np.stack([t.floats("rlnReferenceTau2") for t in tables]) * box**4,
        "fsc": tables[0].floats("rlnGoldStandardFsc"),
        "pdf_class": classes.floats("rlnClassDistribution"),
        "group_scale": model["model_groups"].floats("rlnGroupScaleCorrection"),
    }


def _exact(values: FloatArray) -> list[str]:
    """Numbers with as many digits as a run needs to go on as if it had not stopped."""
    return [f"{value:.9e}" for value in values]


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
