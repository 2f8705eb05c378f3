#!/usr/bin/env bash
# From 8 real micrographs of apoferritin (EMPIAR-10146) to a sharpened map, in a few minutes on one core.
#
#     examples/apoferritin.sh DATA [OUT]
#
# DATA holds micrographs/*.mrc (1.5 A/px, 300 kV, Cs-corrected, dark protein), picks/*.star (centres drawn by hand) and
# reference_30A.mrc (a deposited model without what is finer than 30 A). OUT, by default apoferritin/, is a project
# folder as RELION makes one, with a folder for each job. Set in the environment, where wanted:
#
#     PICKS=hand   start from the hand picks, not from those of spa pick
#     BOX=192      another box than 128 px; at 2 um of defocus the CTF spreads signal of 7.4 A by 53 A
#     THREADS=4    threads, 2 unless given
set -euo pipefail
data=$(realpath "$1") out=${2:-apoferritin} picks=${PICKS:-own} box=${BOX:-128} threads=${THREADS:-2}

mkdir -p "$out" && cd "$out"
ln -sfn "$data/micrographs" Micrographs && ln -sfn "$data/picks" HandPicks
reference=$data/reference_30A.mrc

spa import --i "Micrographs/*.mrc" --odir Import/job001/ --angpix 1.5 --kV 300 --Cs 0.001 --Q0 0.07
spa ctffind --i Import/job001/micrographs.star --o CtfFind/job002/ --j "$threads"
micrographs=CtfFind/job002/micrographs_ctf.star

if [ "$picks" = hand ]; then
    spa import --i "HandPicks/*.star" --do_coordinates --micrographs $micrographs --odir AutoPick/job003/ --ofile autopick.star
else
    spa pick --i $micrographs --odir AutoPick/job003/ --ref "$reference" --sym O --random_seed 1 \
        --j "$threads"
fi

# the background circle leaves room for the particle, 120 A across, and its dark fringe; boxes of refinement are bright
spa extract --i $micrographs --coord_list AutoPick/job003/autopick.star --part_dir Extract/job004/ --extract_size "$box" \
    --norm --bg_radius 56 --invert_contrast --j "$threads"
spa refine3d --i Extract/job004/particles.star --o Refine3D/job005/run --ref "$reference" --ini_high 30 --firstiter_cc \
    --sym O --ctf --particle_diameter 150 --flatten_solvent --zero_mask --norm --scale \
    --healpix_order 3 --offset_range 6 --offset_step 2 --low_resol_join_halves 40 --random_seed 1 --j "$threads"
# wide and soft: coarse signal is so strong in a hollow shell that a hard edge would carry it into the fine shells
spa mask --i Refine3D/job005/run_class001.mrc --o MaskCreate/job006/mask.mrc --extend_inimask 5 --width_soft_edge 10
spa postprocess --i Refine3D/job005/run_half1_class001_unfil.mrc --mask MaskCreate/job006/mask.mrc \
    --o PostProcess/job007/postprocess --auto_bfac --autob_lowres 15
