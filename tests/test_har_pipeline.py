"""Batches: augmentation that keeps what it must, seeded order, prefetching."""

import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from perfalign_jax.har.nn import _pipeline as pipeline

KEY = jax.random.key(0)


def test_a_warped_clock_runs_forwards_and_stays_inside_the_clip():
    ramp = jnp.tile(jnp.arange(50.0)[None, :, None], (200, 1, 1))
    found = np.asarray(pipeline.warp_time(KEY, ramp, crop=0.3, warp=0.2))[:, :, 0]
    assert (np.diff(found, axis=1) > 0).all()
    assert found.min() >= 0
    assert found.max() <= 49
    spans = (found[:, -1] - found[:, 0]) / 49
    assert 0.7 - 1e-6 <= spans.min() < 0.75  # every crop up to the largest
    assert 0.95 < spans.max() <= 1
    assert np.ptp(found[:, 0]) > 5  # and from anywhere


def test_what_cannot_be_augmented_is_refused():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"warp must be below 0\.318, got 5"):
        pipeline.warp_time(key, np.ones((2, 8, 3), np.float32), warp=5)
    with pytest.raises(
        ValueError, match=r"x must have shape \(b, length, 6\), got shape \(2, 8, 5\)"
    ):
        pipeline.augment_inertial(key, np.ones((2, 8, 5), np.float32))
    with pytest.raises(TypeError, match="pixels as uint8, got dtype float32"):
        pipeline.prepare_video(np.ones((2, 4, 8, 8), np.float32))
    assert pipeline.augment_inertial(key, np.ones((2, 8, 6), int)).dtype == np.float32


def test_without_crop_and_warp_time_stays_as_it_is(rng):
    x = rng.normal(size=(3, 9, 2, 2)).astype(np.float32)
    np.testing.assert_allclose(pipeline.warp_time(KEY, x, crop=0.0, warp=0.0), x, atol=1e-6)


def test_a_turned_sensor_measures_the_same_lengths(rng):
    turn = np.asarray(pipeline._draw_rotations(KEY, 100, 0.3, jnp.float32))
    eye = np.broadcast_to(np.eye(3), turn.shape)
    np.testing.assert_allclose(turn @ turn.transpose(0, 2, 1), eye, atol=1e-5)  # float32
    np.testing.assert_allclose(np.linalg.det(turn), 1, atol=1e-5)
    angles = np.arccos((np.trace(turn, axis1=1, axis2=2) - 1) / 2)
    assert 0.3 < angles.mean() < 0.7  # 0.3 times the mean length of a normal vector, 1.6


@pytest.mark.parametrize(
    ("augment", "shape"),
    [(pipeline.augment_inertial, (64, 30, 6)), (pipeline.augment_skeleton, (64, 30, 60))],
)
def test_series_vary_a_little_and_with_the_key(augment, shape):
    t = np.linspace(0, 3, shape[1])[None, :, None]
    x = np.broadcast_to(np.sin(t + np.arange(shape[2])), shape).astype(np.float32)
    one, again = augment(KEY, x), augment(KEY, x)
    np.testing.assert_array_equal(one, again)
    other = augment(jax.random.key(1), x)
    distance = np.sqrt(np.mean((np.asarray(one) - np.asarray(other)) ** 2))
    assert 0.05 < distance < 0.6  # of a signal of size 0.7
    assert one.shape == shape
    assert one.dtype == np.float32
    assert len(np.unique(np.asarray(one)[:, 3, 3])) == 64  # every clip its own way


def test_no_augmentation_mirrors():
    """A ramp over the columns stays a rising one in every clip."""
    ramp = np.broadcast_to(np.arange(0, 192, 4, dtype=np.uint8), (50, 6, 48, 48))
    found = np.asarray(pipeline.augment_video(KEY, ramp))
    assert (np.diff(found, axis=3) >= 0).all()
    assert (
        np.diff(np.asarray(pipeline.augment_video(KEY, ramp.swapaxes(2, 3))), axis=2) >= 0
    ).all()


def test_videos_are_shifted_sped_up_and_scaled():
    x = np.zeros((100, 16, 32, 32), np.uint8)
    x[np.arange(100)[:, None], np.arange(16), 16, 10 + np.arange(16)] = 200
    found = np.asarray(pipeline.augment_video(KEY, x))
    assert found.shape == x.shape
    assert found.dtype == np.float32
    place = np.argmax(found.max(axis=(1, 3)), axis=1) - 16
    assert set(place) == {-2, -1, 0, 1, 2}  # a sixteenth of 32 rows
    heights = found.max(axis=(1, 2, 3)) / (200 * 2 / 255)
    assert 0.1 < heights.std() < 0.2
    colour = np.asarray(pipeline.augment_video(KEY, np.repeat(x[..., None], 3, axis=4)))
    np.testing.assert_array_equal(colour[..., 0], found)


def test_an_epoch_shows_each_clip_at_most_once_to_each_seed():
    keys = jax.random.split(KEY, 3)
    batches = pipeline.draw_batches(keys, n=23, batch_size=5, epoch=2)
    assert batches.shape == (4, 3, 5)
    for seed in range(3):
        shown = batches[:, seed].ravel()
        assert len(set(shown)) == 20
        assert set(shown) <= set(range(23))
    np.testing.assert_array_equal(batches, pipeline.draw_batches(keys, n=23, batch_size=5, epoch=2))
    assert (batches != pipeline.draw_batches(keys, n=23, batch_size=5, epoch=3)).any()
    assert (batches[:, 0] != batches[:, 1]).any()
    alone = pipeline.draw_batches(keys[1:2], n=23, batch_size=5, epoch=2)
    np.testing.assert_array_equal(alone[:, 0], batches[:, 1])  # seeds do not depend on each other


def test_bad_batches_are_refused():
    keys = jax.random.split(KEY, 1)
    with pytest.raises(ValueError, match=r"batch_size must be between 1 and 5 \(n = 5 clips\)"):
        pipeline.draw_batches(keys, n=5, batch_size=6, epoch=0)
    with pytest.raises(TypeError, match="epoch must be an integer"):
        pipeline.draw_batches(keys, n=5, batch_size=2, epoch=0.5)
    with pytest.raises(ValueError, match="ahead must be at least 1"):
        next(pipeline.prefetch(abs, [1], ahead=0))


def test_prefetching_works_ahead_keeps_order_and_stops_when_left():
    made = []

    def make(item):
        made.append(item)
        return item * 10

    stream = pipeline.prefetch(make, range(100), ahead=3)
    assert next(stream) == 0
    deadline = time.monotonic() + 10
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 4 <= len(made) <= 6  # one taken, three waiting, one or two in the making
    before = threading.active_count()
    stream.close()
    assert threading.active_count() == before - 1
    assert list(pipeline.prefetch(make, range(7))) == [0, 10, 20, 30, 40, 50, 60]


def test_what_a_batch_raises_is_raised_where_it_was_due():
    def make(item):
        if item == 2:
            raise KeyError("third")
        return item

    stream = pipeline.prefetch(make, range(5))
    assert [next(stream), next(stream)] == [0, 1]
    with pytest.raises(KeyError, match="third"):
        next(stream)
