"""The contrastive loss against NumPy, and the training by what it must achieve."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from perfalign_jax import contrastive

pytestmark = pytest.mark.usefixtures("promoting")


@pytest.fixture
def views(rng):
    """Two noisy views of two latents, in very different units and off centre."""
    z = rng.normal(size=(40, 2))
    noise = rng.normal(size=(2, 40, 3)) * 0.1
    return tuple(
        scale * (z @ rng.normal(size=(2, 3)) + e + 5)
        for scale, e in zip((100.0, 0.01), noise, strict=True)
    )


def loss_in_numpy(z1, z2, temperature):
    u1, u2 = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (z1, z2))
    logits = u1 @ u2.T / temperature
    rows = logsumexp(logits, axis=1) - np.diag(logits)
    columns = logsumexp(logits, axis=0) - np.diag(logits)
    return (rows.mean() + columns.mean()) / 2


def encode(alignment, views):
    return tuple(
        (x - np.asarray(mean)) @ np.asarray(a).T
        for x, mean, a in zip(views, alignment.means, alignment.projections, strict=True)
    )


# One shape and one number of steps: one compilation for most tests.
train = functools.partial(
    contrastive.train_linear_contrastive, k=2, steps=200
)  # one shape and length: one compilation


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_loss_agrees_with_numpy(x64, rng, temperature):
    z1, z2 = rng.normal(size=(2, 20, 3))
    z2 = z2 + z1
    ours = contrastive.info_nce(z1, z2, temperature=temperature)
    np.testing.assert_allclose(ours, loss_in_numpy(z1, z2, temperature), rtol=1e-12)


def test_loss_of_latents_that_say_nothing_is_log_n(x64, rng):
    z = np.ones((16, 3))
    np.testing.assert_allclose(contrastive.info_nce(z, z, temperature=0.1), np.log(16), rtol=1e-12)
    # A latent of zero has no direction, and no gradient either.
    gradient = jax.grad(lambda a: contrastive.info_nce(a, z, temperature=0.1))(0 * z)
    assert np.all(gradient == 0)


def test_loss_sees_neither_scale_nor_a_common_rotation(x64, rng):
    z1, z2 = rng.normal(size=(2, 20, 3))
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    lengths = rng.uniform(0.1, 10, size=(20, 1))
    np.testing.assert_allclose(
        contrastive.info_nce(lengths * z1 @ rotation, z2 @ rotation, temperature=0.2),
        contrastive.info_nce(z1, z2, temperature=0.2),
        rtol=1e-12,
    )


def test_training_lowers_the_loss_and_correlates_the_latents(x64, views):
    alignment, losses = train(jax.random.key(0), views)
    assert losses.shape == (200,)
    assert losses[0] > 0.5 * np.log(40)
    assert losses[-1] < 0.5 * losses[0]
    z1, z2 = encode(alignment, views)
    correlations = [np.corrcoef(z1[:, j], z2[:, j])[0, 1] for j in range(2)]
    np.testing.assert_allclose(alignment.coupling, correlations, atol=1e-12)
    assert min(correlations) > 0.95  # the noise allows 0.99
    cosine = np.sum(z1 * z2, 1) / np.linalg.norm(z1, axis=1) / np.linalg.norm(z2, axis=1)
    assert np.median(cosine) > 0.99
    assert alignment.center
    assert (alignment.method, alignment.select) == ("train_linear_contrastive", "")
    np.testing.assert_allclose(alignment.means[0], views[0].mean(0), rtol=1e-12)


def test_first_loss_is_that_of_the_first_encoders(x64, views):
    # With a learning rate of nearly zero the encoders that come out are those that went in.
    alignment, losses = train(jax.random.key(3), views, learning_rate=1e-14)
    z1, z2 = encode(alignment, views)
    np.testing.assert_allclose(losses[0], loss_in_numpy(z1, z2, 0.07), rtol=1e-9)


def test_units_do_not_matter(x64, views):
    # Powers of two: scaling by them rounds nothing, and training amplifies rounding.
    scaled = (64 * views[0], views[1] / 1024)
    a, losses = train(jax.random.key(0), views)
    b, scaled_losses = train(jax.random.key(0), scaled)
    np.testing.assert_allclose(losses, scaled_losses, rtol=1e-9)
    np.testing.assert_allclose(a.projections[0], 64 * b.projections[0], rtol=1e-7)


def test_temperature_stays_above_a_hundredth(x64, views):
    # Equal views are told apart perfectly, so a lower temperature always pays.
    same = (views[0], views[0])
    alignment, losses = train(jax.random.key(0), same, temperature=0.0101)
    z1, z2 = encode(alignment, same)
    assert losses[-1] >= loss_in_numpy(z1, z2, 0.01) * (1 - 1e-2)


def test_batches_train_as_well(x64, views):
    alignment, losses = train(jax.random.key(0), views, batch_size=10)
    assert losses.shape == (200,)
    start, _ = train(jax.random.key(0), views, batch_size=10, learning_rate=1e-14)
    end_loss, start_loss = (
        loss_in_numpy(*encode(a, views), temperature=0.07) for a in (alignment, start)
    )
    assert end_loss < 0.5 * start_loss
    # At a high temperature nothing is told apart: the loss counts the rows of a batch.
    _, losses = train(jax.random.key(0), views, batch_size=10, temperature=1e6)
    np.testing.assert_allclose(losses[0], np.log(10), rtol=1e-5)
    whole, _ = train(jax.random.key(0), views, batch_size=40)
    full, _ = train(jax.random.key(0), views)
    # The same rows in another order: sums round differently, and training amplifies that.
    np.testing.assert_allclose(whole.projections[0], full.projections[0], rtol=1e-5)


def test_vmap_over_views_and_key_equals_a_loop(x64, views, rng):
    others = tuple(rng.normal(size=x.shape) for x in views)
    batch = tuple(jnp.stack(pair) for pair in zip(views, others, strict=True))
    keys = jax.random.split(jax.random.key(1), 2)
    together, losses = jax.vmap(lambda v, key: train(key, v))(batch, keys)
    for i, one in enumerate((views, others)):
        alone, alone_losses = train(keys[i], one)
        np.testing.assert_allclose(losses[i], alone_losses, rtol=1e-9)
        for a, b in zip(together.projections, alone.projections, strict=True):
            np.testing.assert_allclose(a[i], b, rtol=1e-7, atol=1e-9)


def test_dtype_is_kept_and_a_view_without_variance_is_harmless(x64, views):
    constant = np.ones((40, 2), np.float32)
    alignment, losses = train(jax.random.key(0), (views[0].astype(np.float32), constant), steps=3)
    leaves = jax.tree.leaves((alignment, losses))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}
    assert all(np.isfinite(leaf).all() for leaf in leaves)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "k must be at least 1, got 0"),
        ({"k": 1.0}, TypeError, "k must be an integer"),
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"learning_rate": 0}, ValueError, "learning_rate must be above zero, got 0"),
        ({"temperature": -1}, ValueError, "temperature must be above zero, got -1"),
        ({"batch_size": 1}, ValueError, r"batch_size must be between 2 and 8 \(n = 8 rows\)"),
        ({"batch_size": 9}, ValueError, "batch_size must be between 2 and 8"),
    ],
)
def test_wrong_options_are_refused(rng, options, error, message):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    with pytest.raises(error, match=message):
        train(jax.random.key(0), (x, x), **options)


def test_wrong_data_is_refused(rng):
    x = rng.normal(size=(8, 3)).astype(np.float32)
    with pytest.raises(TypeError, match="tuple of two arrays"):
        train(jax.random.key(0), x)
    with pytest.raises(ValueError, match="same shape"):
        contrastive.info_nce(x, x[:, :2], temperature=1.0)
    with pytest.raises(ValueError, match="temperature must be above zero"):
        contrastive.info_nce(x, x, temperature=0.0)


@pytest.mark.parametrize("unit", [1e-25, 1e25])
def test_units_change_nothing_of_the_training(views, unit):
    scaled = tuple((unit * x).astype(np.float32) for x in views)
    key = jax.random.key(0)
    one, other = (
        contrastive.train_linear_contrastive(key, v, k=2, steps=20)[1] for v in (views, scaled)
    )
    assert np.allclose(one, other, rtol=1e-3)
