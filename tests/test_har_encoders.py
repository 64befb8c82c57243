"""Encoders and decoder: shapes, what they must not confuse, and every way to choose one."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perfalign_jax.har.nn import _pipeline as pipeline
from perfalign_jax.har.nn import encoders, resnet
from perfalign_jax.har.nn.encoders import (
    CompactVideoEncoder,
    PaperVideoEncoder,
    SeriesEncoder,
    make_branch,
)

pytestmark = pytest.mark.usefixtures("promoting")

KEY = jax.random.key(0)


run = nnx.jit(lambda encoder, x: encoder(x))


def make_head(inputs, hidden, outputs, key):
    return encoders.Head(inputs, hidden, outputs, rngs=nnx.Rngs(key), dtype=jnp.float32)


def count(module):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


@pytest.mark.parametrize(
    ("space", "taps", "strides"),
    [
        ((9,), (5,), (2,)),
        ((8,), (3,), (1,)),
        ((7, 6), (3, 3), (2, 1)),
        ((4, 6, 6), (1, 3, 2), (1, 3, 2)),  # patches side by side
        ((5, 4, 4), (3, 3, 3), (2, 1, 1)),
    ],
)
def test_patches_times_a_matrix_are_a_convolution(rng, space, taps, strides):
    x = rng.normal(size=(2, *space, 3)).astype(np.float32)
    layer = encoders._Convolution(
        3, 4, taps=taps, strides=strides, rngs=nnx.Rngs(0), dtype=jnp.float32
    )
    layer.norm = lambda y: y + 100.0  # so that ReLU lets everything pass
    kernel = np.asarray(layer.kernel[...]).reshape(*taps, 3, 4)
    letters = "DHW"[-len(space) :]
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        "SAME",
        dimension_numbers=(f"N{letters}C", f"{letters}IO", f"N{letters}C"),
    )
    np.testing.assert_allclose(layer(x) - 100, expected, atol=1e-4)  # float32 beside 100


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (partial(SeriesEncoder, channels=6, latent=16, widths=(8, 8)), (3, 40, 6), (3, 16)),
        (partial(SeriesEncoder, channels=6, latent=16), (3, 33, 6), (3, 16)),  # any length
        (partial(CompactVideoEncoder, size=32, latent=16), (2, 6, 32, 32), (2, 16)),
        (partial(CompactVideoEncoder, size=32, channels=3), (2, 6, 32, 32, 3), (2, 256)),
        (partial(make_head, 16, 256, 27), (2, 16), (2, 27)),
    ],
)
def test_encoders_give_one_latent_vector_for_each_clip(make, shape, expected):
    assert jax.eval_shape(lambda x: make(KEY)(x), jnp.ones(shape)).shape == expected


@pytest.mark.slow
def test_clips_of_a_batch_do_not_reach_each_other(rng):
    encoder = CompactVideoEncoder(KEY, size=16, latent=8)
    x = rng.uniform(0, 2, size=(4, 8, 16, 16)).astype(np.float32)
    together, alone = (
        run(encoder, x),
        np.concatenate([run(encoder, x[i : i + 1]) for i in range(4)]),
    )
    np.testing.assert_allclose(together, alone, atol=1e-5)  # float32, values around one


def test_a_video_encoder_sees_the_order_of_frames_and_motion(rng):
    encoder = CompactVideoEncoder(KEY, size=16, latent=8)
    x = rng.uniform(0, 2, size=(1, 8, 16, 16)).astype(np.float32)
    assert np.abs(run(encoder, x) - run(encoder, x[:, ::-1])).max() > 1e-3
    assert np.abs(run(encoder, x) - run(encoder, x[:, :, :, ::-1])).max() > 1e-3


def test_the_papers_encoder_runs_at_its_own_size():
    encoder = PaperVideoEncoder(KEY)
    x = jax.ShapeDtypeStruct((2, 8, 112, 112), jnp.float32)
    graph, state = nnx.split(encoder)
    assert jax.eval_shape(lambda s, x: nnx.merge(graph, s)(x), state, x).shape == (2, 2048)
    assert count(encoder) > 11_176_512  # the trunk and what stands on it


@pytest.mark.slow
def test_a_frozen_trunk_keeps_its_statistics(rng):
    x = rng.uniform(0, 2, size=(2, 2, 32, 32)).astype(np.float32)
    for frozen in (True, False):
        encoder = PaperVideoEncoder(KEY, latent=4, width=4, frozen=frozen)
        before = jax.tree.map(jnp.copy, nnx.state(encoder, nnx.BatchStat))
        nnx.jit(lambda encoder, x: encoder(x, train=True))(encoder, x)
        after = nnx.state(encoder, nnx.BatchStat)
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
        same = [bool((a == b).all()) for a, b in pairs]
        assert all(same) == frozen


@pytest.mark.slow
def test_grey_videos_are_shown_to_all_three_colours(rng):
    encoder = PaperVideoEncoder(KEY, latent=4, width=4)
    x = rng.uniform(0, 2, size=(1, 2, 32, 32)).astype(np.float32)
    colour = np.repeat(x[..., None], 3, axis=4)
    np.testing.assert_allclose(run(encoder, x), run(encoder, colour), atol=1e-5)


@pytest.mark.slow
def test_mixed_precision_keeps_weights_and_latents_in_float32():
    encoder = SeriesEncoder(KEY, channels=6, latent=8, widths=(8,), dtype=jnp.bfloat16)
    x = jnp.ones((2, 16, 6))
    assert encoder(x).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(encoder))} == {jnp.dtype("float32")}
    exact = SeriesEncoder(KEY, channels=6, latent=8, widths=(8,))(x)
    np.testing.assert_allclose(encoder(x), exact, rtol=0.05, atol=0.05)  # 8 bits of mantissa


def test_every_modality_has_a_branch():
    series, video = np.zeros((2, 20, 6), np.float32), np.zeros((2, 4, 16, 16), np.uint8)
    inputs = {
        "inertial": series,
        "skeleton": np.zeros((2, 20, 60), np.float32),
        "depth": video,
        "rgb": np.zeros((2, 4, 16, 16, 3), np.uint8),
    }
    for modality, x in inputs.items():
        branch = make_branch(modality, latent=8, size=16)
        prepared = jax.eval_shape(branch.prepare, x)
        latents = jax.eval_shape(lambda y, branch=branch: branch.make(KEY)(y), prepared)
        assert latents.shape == (2, 8)
        assert jax.eval_shape(branch.augment, KEY, x).shape == prepared.shape
        assert modality in branch.name


@pytest.mark.slow
def test_weights_of_the_trunk_come_from_a_file(tmp_path):
    trunk = resnet.ResNet18(jax.random.key(7))
    resnet.save_resnet18(trunk, tmp_path / "trunk.safetensors")
    options = {"architecture": "paper", "latent": 4, "weights": tmp_path / "trunk.safetensors"}
    branch = make_branch("depth", frozen=True, **options)
    found = branch.make(KEY).trunk
    leaves = (jax.tree.leaves(nnx.state(model)) for model in (found, trunk))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_array_equal(a, b)
    assert branch.frozen == ("trunk",)
    assert "frozen" in branch.name
    assert make_branch("depth", **options).frozen == ()


def test_choices_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="modality must be one of"):
        make_branch("sound")
    with pytest.raises(ValueError, match="architecture must be one of 'compact', 'paper'"):
        make_branch("depth", architecture="huge")
    with pytest.raises(ValueError, match="give weights as well"):
        make_branch("depth", architecture="paper", frozen=True)
    with pytest.raises(ValueError, match="architecture='paper' only"):
        make_branch("depth", weights="w.safetensors")
    with pytest.raises(ValueError, match="latent must be at least 1"):
        make_branch("inertial", latent=0)
    with pytest.raises(ValueError, match="multiple of 16, got 40"):
        CompactVideoEncoder(KEY, size=40)
    with pytest.raises(ValueError, match="multiple of 16, got 40"):
        make_branch("depth", size=40)


def test_wrong_shapes_name_what_was_expected():
    with pytest.raises(ValueError, match=r"\(b, length, 6\), got shape \(2, 9, 5\)"):
        SeriesEncoder(KEY, channels=6, widths=(4,))(jnp.ones((2, 9, 5)))
    with pytest.raises(ValueError, match=r"\(b, frames, 16, 16\), got"):
        CompactVideoEncoder(KEY, size=16)(jnp.ones((2, 9, 32, 32)))
    with pytest.raises(ValueError, match=r"\(b, frames, h, w, 3\)"):
        PaperVideoEncoder(KEY, latent=4, width=4)(jnp.ones((2, 9)))


@pytest.mark.slow
def test_pixels_reach_the_trunk_on_the_scale_of_its_weights(monkeypatch):
    """Pixels on a scale from 0 to 1, less ImageNet's mean, in units of its standard deviation."""
    encoder = PaperVideoEncoder(KEY, latent=4, width=4)
    seen = []

    def feature_map(self, images, *, train):
        seen.append(images)
        return jnp.zeros((len(images), 1, 1, 512))

    monkeypatch.setattr(resnet.ResNet18, "feature_map", feature_map)
    pixels = np.arange(1 * 1 * 32 * 32 * 3, dtype=np.int64).reshape(1, 1, 32, 32, 3) % 256
    pixels = pixels.astype(np.uint8)
    encoder(pipeline.prepare_video(pixels))
    wanted = (pixels / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(seen[0][None], wanted, atol=1e-5)


def test_weights_and_latents_are_float32_in_64_bit_mode_too(x64):
    branch = make_branch("depth", latent=8, size=16)
    x = np.zeros((2, 4, 16, 16), np.uint8)

    def shapes():
        encoder = branch.make(KEY)
        return nnx.state(encoder), branch.augment(KEY, x), encoder(branch.prepare(x))

    leaves = jax.tree.leaves(jax.eval_shape(shapes))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}


@pytest.mark.slow
def test_latents_can_have_the_rank_of_their_size():
    for modality in ("inertial", "skeleton"):
        encoder = make_branch(modality, latent=300).make(KEY)
        assert encoder.head.hidden.kernel.shape[1] == 300


def test_the_papers_encoder_says_what_its_trunk_starts_from(tmp_path):
    with pytest.warns(UserWarning, match="random numbers"):
        make_branch("depth", architecture="paper")
    with pytest.raises(ValueError, match="for depth and rgb"):
        make_branch("skeleton", architecture="paper")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make_branch("depth", architecture="paper", weights=tmp_path / "none.safetensors")
