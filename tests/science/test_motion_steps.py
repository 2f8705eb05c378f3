"""Smoothing of paths: against paths that are known, and what it may not depend on."""

from __future__ import annotations

import numpy as np
import pytest

from spa.motion_steps import smooth

N_FRAMES = 24
ERRORS = np.linspace(0.07, 0.18, N_FRAMES)[:, None] * np.ones(2)


def direction(degrees: float) -> np.ndarray:
    """Unit vectors along and across, as rows."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, sin], [-sin, cos]])


def wandering(rng: np.random.Generator, turning: float) -> np.ndarray:
    """A path of even speed, 3 units a frame, whose direction wanders by `turning` radians a frame."""
    heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turning * rng.standard_normal(N_FRAMES - 1))
    steps = 3 * np.stack([np.cos(heading), np.sin(heading)], axis=1)
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)])


def rms(errors: np.ndarray) -> float:
    return float(np.sqrt(((errors - errors.mean(axis=0)) ** 2).sum(axis=1).mean()))


def pooled(paths: list[np.ndarray], seed: int = 0) -> tuple[float, float, float]:
    """Of paths: error after smoothing, before it, and what `smooth` says it is."""
    rng, found = np.random.default_rng(seed), []
    for path in paths:
        measured = path + ERRORS * rng.standard_normal(path.shape)
        smoothed, errors = smooth(measured, ERRORS)
        found.append((rms(smoothed - path), rms(measured - path), np.sqrt((errors**2).sum(axis=1).mean())))
    after, before, said = np.sqrt((np.array(found) ** 2).mean(axis=0))
    return after, before, said


def test_a_straight_path_is_smoothed_to_a_third_of_its_errors():
    after, before, said = pooled([np.arange(N_FRAMES)[:, None] * direction(angle)[0] for angle in range(0, 360, 20)])
    assert after < before / 3
    assert 0.7 < said / after < 2


def test_a_path_of_even_speed_that_turns_gains_along_itself():
    rng = np.random.default_rng(1)
    after, before, said = pooled([wandering(rng, 0.25) for _ in range(20)])
    assert after < 0.85 * before
    assert said == pytest.approx(after, rel=0.15)


@pytest.mark.parametrize("angle", [0.0, 35.0])
def test_uneven_speed_leaves_what_lies_across_the_path_smooth(angle):
    rng, axes, across = np.random.default_rng(2), direction(angle), []
    for _ in range(10):
        path = np.cumsum(3 + 2 * rng.standard_normal(N_FRAMES))[:, None] * axes[0]
        measured = path + 0.15 * rng.standard_normal(path.shape)
        smoothed, errors = smooth(measured, np.full_like(path, 0.15))
        across.append([((values - path) @ axes[1]).std() for values in (smoothed, measured)])
        assert np.isfinite(errors).all()
    after, before = np.sqrt((np.array(across) ** 2).mean(axis=0))
    assert after < 0.7 * before


def test_a_turned_path_is_smoothed_alike():
    turn = direction(50.0)
    measured = wandering(np.random.default_rng(3), 0.3) + 0.1 * np.random.default_rng(4).standard_normal((N_FRAMES, 2))
    errors = np.full_like(measured, 0.1)
    straight, _ = smooth(measured, errors)
    turned, _ = smooth(measured @ turn, errors)
    assert np.abs(turned - straight @ turn).max() < 0.02 * 0.1


@pytest.mark.parametrize("n_frames", [5, 24, 300])
def test_frames_that_say_nothing_follow_their_neighbours(n_frames):
    path = np.arange(n_frames)[:, None] * np.array([1.0, -0.5])
    measured, errors = path.copy(), np.full_like(path, 0.1)
    measured[2], errors[2] = 50.0, np.inf
    smoothed, left = smooth(measured, errors)
    assert np.abs(smoothed - path).max() < 0.2
    assert np.isinf(left[2]).all()
    assert (left[np.arange(n_frames) != 2] <= 0.1 + 1e-12).all()


def test_too_few_frames_or_none_that_say_anything_stay_as_they_are():
    measured = np.random.default_rng(5).standard_normal((6, 2))
    for values, errors in ((measured[:3], np.ones((3, 2))), (measured, np.full((6, 2), np.inf))):
        smoothed, left = smooth(values, errors)
        assert np.array_equal(smoothed, values)
        assert np.array_equal(left, errors)
