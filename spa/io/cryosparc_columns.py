"""Which field of a cryoSPARC .cs table is which column of a STAR file.

Notes
-----
Classes and images count from 0, the halves of `split` are 0 and 1, angles are in radians. The magnification matrix has
the identity subtracted and acts on frequencies, as RELION's does. Poses: `spa.io.cryosparc_alignments`; aberrations:
`spa.aberration_lengths`. What RELION has no column for and a way back needs goes into columns whose names begin with
cryosparc; RELION keeps columns that it does not know.
"""

from __future__ import annotations

import numpy as np

UID, SIGN, POSTERIOR = "cryosparcUid", "cryosparcBlobSign", "cryosparcClassPosterior"
SIZES = ("cryosparcMicrographSizeX", "cryosparcMicrographSizeY")
EXPOSURE_GROUP = "cryosparcExposureGroup"
MAGNIFICATION = ("rlnMagMat00", "rlnMagMat01", "rlnMagMat10", "rlnMagMat11")
CTF = {
    "ctf/df1_A": ("rlnDefocusU", 1.0),
    "ctf/df2_A": ("rlnDefocusV", 1.0),
    "ctf/df_angle_rad": ("rlnDefocusAngle", 180 / np.pi),
    "ctf/phase_shift_rad": ("rlnPhaseShift", 180 / np.pi),
    "ctf/bfactor": ("rlnCtfBfactor", 1.0),
    "ctf/scale": ("rlnCtfScalefactor", 1.0),
}
"""Field -> column and the factor between them."""
SCORES = {
    "pick_stats/ncc_score": "rlnAutopickFigureOfMerit",
    "ctf/cross_corr_ctffind4": "rlnCtfFigureOfMerit",
    "ctf/ctf_fit_to_A": "rlnCtfMaxResolution",
}
OPTICS = {
    "ctf/accel_kv": "rlnVoltage",
    "ctf/cs_mm": "rlnSphericalAberration",
    "ctf/amp_contrast": "rlnAmplitudeContrast",
    "blob/psize_A": "rlnImagePixelSize",
    "location/micrograph_psize_A": "rlnMicrographPixelSize",
}
LENSES = {"ctf/shift_A": 2, "ctf/tilt_A": 2, "ctf/trefoil_A": 2, "ctf/tetra_A": 4, "ctf/anisomag": 4}
"""Field -> count of its numbers."""
