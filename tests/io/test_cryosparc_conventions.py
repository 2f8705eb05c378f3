"""Conventions of cryoSPARC and RELION, each written out by hand here, against what the conversion does."""

from __future__ import annotations

import numpy as np
import pytest

from spa import aberration_lengths, ctf
from spa.aberration_lengths import Lengths
from spa.aberrations import read_aberrations, with_beam_tilt, zernike_sum
from spa.errors import InputError
from spa.io import star
from spa.io.cryosparc import Table
from spa.io.cryosparc_alignments import alignment, matrices, vectors
from spa.io.cryosparc_to_star import to_star
from spa.io.particle_io import read_particles
from spa.io.star_to_cryosparc import to_table
from tests.io.cryosparc_tables import BOX, COLUMNS, PIXEL_SIZE, ROWS, N, assert_same, cs_table

RNG = np.random.default_rng(4)
WAVELENGTH = float(ctf.wavelength(300.0))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def converted(rows, flip_y=False):
    """The STAR file of a table, read again, and the warnings."""
    told: list[str] = []
    star.write("a.star", to_star(Table("a.cs", rows), flip_y, told.append))
    return star.read("a.star"), told


def back(passthrough=(), flip_y=False):
    """The .cs rows of a.star, and the warnings."""
    told: list[str] = []
    return to_table(read_particles("a.star"), list(passthrough), flip_y, told.append), told


def rodrigues(vector):
    """Rotation matrix of a rotation vector in radians: I + sin t K + (1 - cos t) K K."""
    angle = np.linalg.norm(vector)
    x, y, z = vector / angle
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def relion_matrix(rot, tilt, psi):
    """RELION's Euler matrix of angles in degrees, element by element (Heymann et al. 2005)."""
    (ca, cb, cg), (sa, sb, sg) = (f(np.radians([rot, tilt, psi])) for f in (np.cos, np.sin))
    return np.array(
        [
            [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
            [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
            [sb * ca, sb * sa, cb],
        ]
    )


def test_a_pose_is_the_rotation_vector_of_the_transposed_euler_matrix():
    rows = cs_table(n=40)
    table = converted(rows)[0]["particles"]
    angles = np.stack([table.floats(f"rlnAngle{name}") for name in ("Rot", "Tilt", "Psi")], axis=1)
    for pose, found in zip(rows["alignments3D/pose"].astype(np.float64), angles, strict=True):
        np.testing.assert_allclose(relion_matrix(*found), rodrigues(pose).T, atol=1e-7)


@pytest.mark.parametrize(
    ("pose", "angles"),
    [((0, 0, 0.5), (0, 0, 0.5)), ((0, 0.5, 0), (0, 0.5, 0)), ((0.5, 0, 0), (-np.pi / 2, 0.5, np.pi / 2))],
)
def test_a_turn_about_an_axis_has_the_sign_of_its_angle(pose, angles):
    expected = relion_matrix(*np.degrees(angles))
    np.testing.assert_allclose(matrices(np.array([pose], dtype=float))[0], expected, atol=1e-12)
    np.testing.assert_allclose(vectors(expected[None])[0], pose, atol=1e-12)


def test_poses_beyond_half_a_turn_are_the_same_rotations():
    rows = cs_table(n=20)
    rows["alignments3D/pose"] *= (1.1 * np.pi / np.linalg.norm(rows["alignments3D/pose"], axis=1))[:, None]
    converted(rows)
    found = back()[0]["alignments3D/pose"].astype(np.float64)
    assert np.linalg.norm(found, axis=1).max() <= np.pi + 1e-6
    for one, other in zip(found, rows["alignments3D/pose"].astype(np.float64), strict=True):
        np.testing.assert_allclose(rodrigues(one), rodrigues(other), atol=1e-6)


def test_shifts_are_in_pixels_of_their_own_size_and_keep_their_sign():
    rows = cs_table()
    rows["alignments3D/psize_A"] = 2 * PIXEL_SIZE
    table = converted(rows)[0]["particles"]
    for axis, column in enumerate(("rlnOriginXAngst", "rlnOriginYAngst")):
        np.testing.assert_allclose(
            table.floats(column), rows["alignments3D/shift"][:, axis] * 2 * PIXEL_SIZE, atol=1e-5
        )
    again = back()[0]
    np.testing.assert_allclose(again["alignments3D/shift"], 2 * rows["alignments3D/shift"], atol=1e-5)
    np.testing.assert_array_equal(again["alignments3D/psize_A"], np.float32(PIXEL_SIZE))


def test_classes_and_halves_count_from_zero_there_and_from_one_here():
    rows = cs_table()
    table = converted(rows)[0]["particles"]
    np.testing.assert_array_equal(table.integers("rlnClassNumber"), rows["alignments3D/class"] + 1)
    np.testing.assert_array_equal(table.integers("rlnRandomSubset"), rows["alignments3D/split"] + 1)


def test_particles_that_were_never_split_get_no_half_sets():
    rows = cs_table()
    rows["alignments3D/split"] = 0
    found, told = converted(rows)
    assert "rlnRandomSubset" not in found["particles"]
    assert any("split is 0 everywhere" in line for line in told)
    np.testing.assert_array_equal(back()[0]["alignments3D/split"], 0)
    rows["alignments3D/split"] = 1
    assert converted(rows)[0]["particles"].integers("rlnRandomSubset").tolist() == [2] * N


def test_2d_alignments_are_turns_in_the_plane():
    rows = cs_table("blob", "alignments2D")
    found, told = converted(rows)
    table = found["particles"]
    np.testing.assert_allclose(table.floats("rlnAnglePsi"), np.degrees(rows["alignments2D/pose"]), atol=1e-5)
    assert not table.floats("rlnAngleRot").any()
    assert not table.floats("rlnAngleTilt").any()
    assert any("no ctf/df1_A, so no CTF" in line for line in told)
    again, _ = back()
    assert "alignments3D/pose" not in again.dtype.names
    assert_same(again, rows, leave=("alignments2D/error", "blob/import_sig"))


def test_the_most_probable_of_several_3d_classes_decides():
    slots = [f"alignments_class_{k}" for k in (0, 1, 10)]
    rows = cs_table("blob", *slots, "alignments2D")
    best = RNG.integers(0, 3, N)
    for k, slot in enumerate(slots):
        rows[f"{slot}/class_posterior"] = np.where(best == k, 0.6, 0.2)
    arrays = {name: np.stack([rows[f"{slot}/{name}"] for slot in slots], axis=1) for name in ("pose", "shift")}
    found = alignment(Table("a.cs", rows))
    chosen = np.arange(N), best
    np.testing.assert_allclose(found.poses, matrices(arrays["pose"][chosen].astype(float)), atol=1e-6)
    np.testing.assert_allclose(found.shifts, arrays["shift"][chosen] * PIXEL_SIZE, atol=1e-5)
    np.testing.assert_array_equal(found.class_number, np.array([1, 2, 11])[best])
    np.testing.assert_allclose(found.posterior, 0.6, atol=1e-6)
    told = converted(rows)[1]
    assert any("are those of the likeliest 3D class; alignments2D is left out" in line for line in told)
    multi = np.zeros(
        N,
        dtype=[
            *((name, rows.dtype[name]) for name in ("uid", "blob/psize_A")),
            *(("alignments3D_multi/pose", "<f4", (3, 3)), ("alignments3D_multi/shift", "<f4", (3, 2))),
            *(("alignments3D_multi/class_posterior", "<f4", (3,)), ("alignments3D_multi/split", "<u4")),
            ("alignments3D_multi/psize_A", "<f4", (3,)),
        ],
    )
    multi["alignments3D_multi/psize_A"] = PIXEL_SIZE
    for name, values in arrays.items():
        multi[f"alignments3D_multi/{name}"] = values
    multi["alignments3D_multi/class_posterior"] = np.stack([rows[f"{s}/class_posterior"] for s in slots], axis=1)
    other = alignment(Table("a.cs", multi))
    np.testing.assert_allclose(other.poses, found.poses, atol=1e-6)
    np.testing.assert_allclose(other.shifts, found.shifts, atol=1e-5)
    np.testing.assert_array_equal(other.class_number, best + 1)


def test_coordinates_are_fractions_of_columns_and_rows():
    rows = cs_table()
    table = converted(rows)[0]["particles"]
    x, y = rows["location/center_x_frac"], rows["location/center_y_frac"]
    np.testing.assert_allclose(table.floats("rlnCoordinateX"), x * COLUMNS, atol=1e-3)
    np.testing.assert_allclose(table.floats("rlnCoordinateY"), y * ROWS, atol=1e-3)
    table = converted(rows, flip_y=True)[0]["particles"]
    np.testing.assert_allclose(table.floats("rlnCoordinateY"), (1 - y) * ROWS, atol=1e-3)
    np.testing.assert_allclose(back(flip_y=True)[0]["location/center_y_frac"], y, atol=1e-6)
    np.testing.assert_allclose(back()[0]["location/center_y_frac"], 1 - y, atol=1e-6)


def test_lengths_have_the_phases_of_their_definition():
    lengths = Lengths(shift=(0.7, -1.3), tilt=(2500.0, -900.0), trefoil=(-3000.0, 1700.0), tetra=(4e4, -3e4, 2e4, 9e4))
    q, a = RNG.uniform(0.02, 0.4, 50), RNG.uniform(-np.pi, np.pi, 50)
    x, y = q * np.cos(a), q * np.sin(a)
    sx, sy = lengths.shift
    bx, by = lengths.tilt
    t1, t2 = lengths.trefoil
    s1, s2, f1, f2 = lengths.tetra
    coma = WAVELENGTH**2 * q**2 * (bx * x + by * y)
    trefoil = WAVELENGTH**2 * q**3 / 3 * (t1 * np.cos(3 * a) + t2 * np.sin(3 * a))
    odd = -2 * np.pi * (sx * x + sy * y + coma + trefoil)
    np.testing.assert_allclose(
        zernike_sum(aberration_lengths.odd_zernike(lengths, WAVELENGTH), 1, x, y), odd, rtol=1e-9
    )
    star_and_fourfold = 4 * s1 * np.cos(2 * a) + 4 * s2 * np.sin(2 * a) + f1 * np.cos(4 * a) + f2 * np.sin(4 * a)
    even = np.pi / 2 * WAVELENGTH**3 * q**4 * star_and_fourfold
    np.testing.assert_allclose(
        zernike_sum(aberration_lengths.even_zernike(lengths, WAVELENGTH), 0, x, y), even, rtol=1e-9
    )


def test_the_tilt_length_is_the_beam_tilt_times_the_spherical_aberration():
    # 0.1 mrad at 2.7 mm are 270 nm of axial coma
    odd = with_beam_tilt((), 0.1, 0.0, 2.7, WAVELENGTH)
    lengths, _ = aberration_lengths.from_zernike(odd.tolist(), (), WAVELENGTH)
    np.testing.assert_allclose(lengths.tilt, (2700.0, 0.0), atol=1e-9)
    np.testing.assert_allclose([*lengths.shift, *lengths.trefoil], 0, atol=1e-9)
    rows = cs_table()
    rows["ctf/tilt_A"], rows["ctf/cs_mm"] = (2700.0, -1350.0), 2.7
    optics = converted(rows)[0]["optics"]
    np.testing.assert_allclose(optics.floats("rlnBeamTiltX"), 0.1, atol=1e-9)
    np.testing.assert_allclose(optics.floats("rlnBeamTiltY"), -0.05, atol=1e-9)


def chi(u, v, angle, cs, phase, q, a):
    """The CTF's phase of defoci in Å, angle and phase in radians, cs in mm."""
    defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (a - angle))
    return np.pi * WAVELENGTH * defocus * q**2 - np.pi / 2 * cs * 1e7 * WAVELENGTH**3 * q**4 + phase


def test_even_coefficients_are_the_same_ctf_with_other_defocus_cs_and_phase():
    even = RNG.normal(size=9) * [0.3, 20, 20, 20, 300, 300, 300, 300, 300]
    lengths, remainder = aberration_lengths.from_zernike((), even.tolist(), WAVELENGTH)
    u, v, angle = np.array([15000.0]), np.array([14000.0]), np.array([30.0])
    q, a = RNG.uniform(0.02, 0.4, 50), RNG.uniform(-np.pi, np.pi, 50)
    wanted = chi(u, v, np.radians(angle), 2.7, 0.2, q, a) - zernike_sum(even, 0, q * np.cos(a), q * np.sin(a))
    new_u, new_v, new_angle = aberration_lengths.with_remainder(remainder, u, v, angle)
    s1, s2, f1, f2 = lengths.tetra
    tetra = 4 * s1 * np.cos(2 * a) + 4 * s2 * np.sin(2 * a) + f1 * np.cos(4 * a) + f2 * np.sin(4 * a)
    found = chi(new_u, new_v, np.radians(new_angle), 2.7 + remainder.cs, 0.2 + remainder.phase, q, a)
    np.testing.assert_allclose(found - np.pi / 2 * WAVELENGTH**3 * q**4 * tetra, wanted, atol=1e-8)


def test_every_aberration_of_a_table_comes_back():
    rows = cs_table()
    optics = converted(rows)[0]["optics"]
    assert {"rlnBeamTiltX", "rlnOddZernike", "rlnEvenZernike", "rlnMagMat00"} <= set(optics.columns)
    again, told = back()
    assert_same(again, rows, leave=("blob/import_sig", "ctf/type", "alignments3D/error", "location/micrograph_uid"))
    assert not told
    matrix = read_aberrations(optics, [2.7, 1.4], ctf.wavelength([300.0, 200.0]))[0].matrix
    np.testing.assert_allclose(matrix, np.eye(2) + rows["ctf/anisomag"][0].reshape(2, 2), atol=1e-8)


def test_coma_without_spherical_aberration_goes_into_the_odd_coefficients():
    rows = cs_table()
    rows["ctf/cs_mm"] = 0
    assert "rlnBeamTiltX" not in converted(rows)[0]["optics"]
    assert_same(back()[0][["ctf/tilt_A"]], rows[["ctf/tilt_A"]])


def test_a_spherical_aberration_that_relion_refuses_goes_into_the_even_coefficients():
    rows = cs_table()
    rows["ctf/cs_mm"] = np.where(np.arange(N) % 2, -43.4, 130.0)
    optics = converted(rows)[0]["optics"]
    assert optics.floats("rlnSphericalAberration").tolist() == [0, 0]
    again, _ = back()
    for name in ("ctf/cs_mm", "ctf/tilt_A", "ctf/tetra_A", "ctf/df1_A", "ctf/phase_shift_rad"):
        assert_same(again[[name]], rows[[name]])
    x, y = RNG.uniform(-0.3, 0.3, (2, 20))
    wave = float(ctf.wavelength(300.0))
    even = aberration_lengths.even_zernike(Lengths(), wave, -43.4)
    expected = np.pi / 2 * -43.4e7 * wave**3 * (x**2 + y**2) ** 2
    np.testing.assert_allclose(zernike_sum(even, 0, x, y), expected, rtol=1e-9, atol=1e-9)


def test_aberrations_of_a_star_file_are_the_same_phases_after_the_way_there_and_back():
    found, _ = converted(cs_table())
    odd, even = RNG.normal(size=6) * [1, 1, 300, 300, 300, 300], RNG.normal(size=9) * [0.1, 5, 5, 5, 99, 99, 99, 99, 99]
    n = len(found["optics"])
    for column, values in (("rlnOddZernike", odd), ("rlnEvenZernike", even)):
        found["optics"].set(column, [f"[{','.join(map(repr, values.tolist()))}]"] * n)
    star.write("a.star", found)
    rows, _ = back()
    before, after = read_particles("a.star"), (converted(rows), read_particles("a.star"))[1]
    q = RNG.uniform(-0.3, 0.3, (2, 30))
    for i in (0, 1):
        old, new = (p.aberrations()[p.optics_index[i]] for p in (before, after))
        np.testing.assert_allclose(zernike_sum(new.odd, 1, *q), zernike_sum(old.odd, 1, *q), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(new.magnification, old.magnification, atol=1e-7)
        phases = []
        for p, lens in ((before, old), (after, new)):
            group = p.optics[p.optics_index[i]]
            wave = float(ctf.wavelength(group.voltage))
            r, a = np.hypot(*q), np.arctan2(q[1], q[0])
            u, v, t = p.defocus_u[i], p.defocus_v[i], np.radians(p.defocus_angle[i])
            defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (a - t))
            phase = np.pi * wave * defocus * r**2 - np.pi / 2 * group.cs * 1e7 * wave**3 * r**4
            phases.append(phase + np.radians(p.phase_shift[i]) - zernike_sum(lens.even, 0, *q))
        np.testing.assert_allclose(phases[1], phases[0], atol=2e-4)


def test_orders_that_cryosparc_has_not_are_told():
    found, _ = converted(cs_table())
    found["optics"].set("rlnOddZernike", ["[0,0,0,0,0,0,1.5]", "[0,0]"])
    found["particles"].set("rlnNormCorrection", [1.0] * N)
    star.write("a.star", found)
    told = "\n".join(back()[1])
    assert "group 1: aberrations above the 4th order are not carried over" in told
    assert "group 2" not in told
    assert "not carried over, for want of such fields: rlnNormCorrection" in told


def test_slots_and_scales_that_star_files_have_no_column_for_are_told():
    rows = cs_table()
    rows["alignments3D/alpha"][2] = 0.9
    assert not any("for want of such columns" in line for line in converted(cs_table())[1])
    names = [*rows.dtype.names, "filament/filament_uid"]
    more = np.zeros(N, dtype=[*((n, rows.dtype[n]) for n in rows.dtype.names), (names[-1], "<u8")])
    for name in rows.dtype.names:
        more[name] = rows[name]
    told = converted(more)[1]
    assert "a.cs: not carried over, for want of such columns: alignments3D/alpha, filament" in told


def test_optics_groups_are_those_of_exposures():
    rows = cs_table()
    found, _ = converted(rows)
    optics = found["optics"]
    assert optics.integers("cryosparcExposureGroup").tolist() == [3, 4]
    assert optics.text("rlnVoltage") == ["300.0", "200.0"]
    assert optics.text("rlnSphericalAberration") == ["2.7", "1.4"]
    assert optics.text("rlnImagePixelSize") == ["1.25", "1.25"]
    assert optics.text("rlnMicrographPixelSize") == ["0.82", "0.82"]
    assert optics.integers("rlnImageSize").tolist() == [BOX, BOX]
    np.testing.assert_array_equal(found["particles"].integers("rlnOpticsGroup"), np.arange(N) % 2 + 1)


def test_images_keep_number_stack_and_sign():
    rows = cs_table()
    rows["blob/path"][0] = b">J5/extract/0_mic_particles.mrc"
    found, told = converted(rows)
    assert found["particles"].text("rlnImageName")[:2] == [
        "000001@J5/extract/0_mic_particles.mrc",
        "000004@J5/extract/0_mic_particles.mrc",
    ]
    assert found["particles"].text("cryosparcUid") == [str(uid) for uid in rows["uid"]]
    assert any("blob/sign is -1: dark images" in line for line in told)
    assert back()[0]["blob/sign"].tolist() == [-1] * N


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("blob/shape", [128, 64], r"row 4, blob/shape: expected square images, found \[128  64\]"),
        ("blob/sign", 0.5, "row 4, blob/sign: expected 1 or -1, found 0.5"),
        ("blob/psize_A", 0, "row 4, blob/psize_A: expected a number above 0, found 0.0"),
        ("alignments3D/split", 7, "row 4, alignments3D/split: expected 0 or 1, found 7"),
        ("alignments3D/pose", np.nan, r"row 4, alignments3D/pose: expected finite numbers, found \[nan nan nan\]"),
    ],
)
def test_values_that_make_no_sense_are_refused_by_row(field, value, message):
    rows = cs_table()
    rows[field][3] = value
    with pytest.raises(InputError, match=message):
        converted(rows)
