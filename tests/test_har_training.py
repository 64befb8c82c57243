"""Contrastive training: the loss on cases with known answers, seeds, checkpoints, real kills."""

import dataclasses
import math
import os
import shutil
import signal
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from perfalign_jax import contrastive as loss
from perfalign_jax.har.nn import encoders
from perfalign_jax.har.nn.training import NonFiniteLossError, Settings, encode, start, train

pytestmark = pytest.mark.usefixtures("promoting")

KEYS = jax.random.split(jax.random.key(0), 2)
QUICK = Settings(epochs=3, batch_size=8)


def branch(**changes):
    """A small encoder of 3 channels whose augmentation adds noise."""
    made = encoders.Branch(
        make=lambda key: encoders.SeriesEncoder(key, channels=3, latent=4, widths=(8,), hidden=8),
        augment=lambda key, x: x + 0.1 * jax.random.normal(key, x.shape),
        prepare=lambda x: x,
        name="small",
    )
    return dataclasses.replace(made, **changes)


BRANCHES = (branch(), branch())


@pytest.fixture
def pairs(rng):
    """Clips of two sensors that see the same three hidden motions."""
    hidden = rng.normal(size=(32, 1, 3)) * np.sin(np.arange(16.0))[None, :, None]
    mix = rng.normal(size=(2, 3, 3))
    return tuple((hidden @ m).astype(np.float32) for m in mix)


def flat(trained):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(trained.variables)])


# The loss.


def test_latents_that_tell_nothing_have_the_logarithm_of_the_batch():
    z = np.ones((7, 3), np.float32)
    assert float(loss.info_nce(z, z, temperature=0.1)) == pytest.approx(math.log(7), rel=1e-6)


def test_the_loss_is_what_a_loop_gives(x64, rng):
    z1, z2 = rng.normal(size=(2, 9, 4))
    total = 0.0
    for a, b in ((z1, z2), (z2, z1)):
        for i in range(9):
            scores = [
                math.exp(a[i] @ b[j] / np.linalg.norm(a[i]) / np.linalg.norm(b[j]) / 0.3)
                for j in range(9)
            ]
            total -= math.log(scores[i] / sum(scores)) / 18
    assert float(loss.info_nce(z1, z2, temperature=0.3)) == pytest.approx(total, rel=1e-12)


@pytest.mark.slow
def test_parts_of_a_batch_on_a_mapped_axis_have_the_loss_of_the_whole(x64, rng):
    z1, z2 = rng.normal(size=(2, 12, 4))

    def of_parts(a, b):
        one = jax.vmap(
            lambda p, q: loss.info_nce(p, q, temperature=0.2, axis_name="devices"),
            axis_name="devices",
        )(a.reshape(3, 4, 4), b.reshape(3, 4, 4))
        return one[0]

    def of_whole(a, b):
        return loss.info_nce(a, b, temperature=0.2)

    np.testing.assert_allclose(of_parts(z1, z2), of_whole(z1, z2), rtol=1e-12)
    for found, expected in zip(
        jax.grad(of_parts, (0, 1))(z1, z2), jax.grad(of_whole, (0, 1))(z1, z2), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.slow
def test_a_batch_over_a_device_mesh_has_the_loss_of_the_whole(tmp_path):
    """Two (CPU) devices, in a process of their own: their number is fixed at the start."""
    script = """
        import jax, numpy as np
        jax.config.update("jax_num_cpu_devices", 2)
        from jax.sharding import PartitionSpec as P
        from perfalign_jax import contrastive
        z1, z2 = np.random.default_rng(0).normal(size=(2, 8, 4)).astype("float32")
        mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
        sharded = jax.shard_map(
            lambda a, b: contrastive.info_nce(a, b, temperature=0.2, axis_name="devices"),
            mesh=mesh, in_specs=(P("devices"), P("devices")), out_specs=P(),
        )
        whole = lambda a, b: contrastive.info_nce(a, b, temperature=0.2)
        assert jax.device_count() == 2
        np.testing.assert_allclose(sharded(z1, z2), whole(z1, z2), rtol=1e-5)
        np.testing.assert_allclose(
            jax.grad(sharded)(z1, z2), jax.grad(whole)(z1, z2), atol=1e-6
        )

        import dataclasses
        from perfalign_jax.har.nn import encoders, training
        x = np.random.default_rng(0).normal(size=(9, 16, 6)).astype("float32")
        def small(key):
            return encoders.SeriesEncoder(key, channels=6, latent=4, widths=(8,), hidden=8)
        branch = dataclasses.replace(encoders.make_branch("inertial"), make=small)
        settings = training.Settings(epochs=2, batch_size=4)
        keys = jax.random.split(jax.random.key(0), 2)
        def train(mesh):
            return training.train(
                (branch, branch), (x, x), keys=keys, settings=settings, mesh=mesh
            )
        one = train(None)
        for mesh in (mesh, jax.make_mesh((2,), ("explicit",))):
            two = train(mesh)
            leaf = jax.tree.leaves(two.variables[0])[0]
            assert len(leaf.sharding.device_set) == 2, leaf.sharding
            np.testing.assert_allclose(two.losses, one.losses, rtol=1e-4)  # float32, other order
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr


# Training.


@pytest.mark.slow
def test_training_finds_the_pairs(pairs):
    settings = Settings(epochs=100, batch_size=16, learning_rate=1e-2)
    trained = train(BRANCHES, pairs, keys=KEYS, settings=settings)
    assert trained.losses.shape == (100, 2)
    assert (trained.losses[-1] < 0.6 * trained.losses[0]).all()
    z1, z2 = (encode(trained, x, view=m) for m, x in enumerate(pairs))
    assert z1.shape == (2, 32, 4)
    for a, b in zip(z1, z2, strict=True):
        a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
        assert np.mean(np.argmax(a @ b.T, axis=1) == np.arange(32)) > 0.3  # chance 0.03


@pytest.mark.slow
def test_seeds_in_one_program_are_what_each_is_alone(pairs):
    together = train(BRANCHES, pairs, keys=KEYS, settings=QUICK)
    for seed in range(2):
        alone = train(BRANCHES, pairs, keys=KEYS[seed : seed + 1], settings=QUICK)
        np.testing.assert_allclose(alone.losses[:, 0], together.losses[:, seed], rtol=1e-4)
    assert (together.losses[:, 0] != together.losses[:, 1]).all()


def test_training_depends_on_keys_and_pairs_alone(pairs):
    first, again = (train(BRANCHES, pairs, keys=KEYS, settings=QUICK) for _ in range(2))
    np.testing.assert_array_equal(flat(first), flat(again))

    def watch(trained):
        return np.full(2, 7.0)

    watched = train(BRANCHES, pairs, keys=KEYS, settings=QUICK, watch=watch, watch_every=2)
    np.testing.assert_array_equal(flat(first), flat(watched))
    assert np.isnan(watched.watched[0]).all()
    assert (watched.watched[1:] == 7).all()  # after the second epoch, and after the last


@pytest.mark.slow
def test_every_batch_size_is_made_to_divide_the_pairs(pairs):
    for batch_size in (20, 500):  # batches of two: see test_no_batch_has_a_single_pair
        found = train(
            BRANCHES, pairs, keys=KEYS, settings=Settings(epochs=1, batch_size=batch_size)
        )
        assert np.isfinite(found.losses).all()


@pytest.mark.slow
def test_the_average_of_the_weights_is_between_first_and_last(pairs):
    with_average = train(BRANCHES, pairs, keys=KEYS, settings=dataclasses.replace(QUICK, ema=0.999))
    without = train(BRANCHES, pairs, keys=KEYS, settings=QUICK)
    first = flat(start(BRANCHES, KEYS))
    moved = np.linalg.norm(flat(without) - first)
    assert 0 < np.linalg.norm(flat(with_average) - first) < 0.1 * moved
    np.testing.assert_array_equal(with_average.losses, without.losses)


@pytest.mark.slow
def test_frozen_parts_stay_as_they_are_and_statistics_are_kept(pairs):
    class Encoder(nnx.Module):
        def __init__(self, key):
            rngs = nnx.Rngs(key)
            self.trunk = nnx.Linear(48, 8, rngs=rngs)
            self.norm = nnx.BatchStat(jnp.zeros(8))
            self.head = nnx.Linear(8, 4, rngs=rngs)

        def __call__(self, x, *, train=False):
            x = self.trunk(x.reshape(len(x), -1))
            if train:
                self.norm[...] = 0.5 * self.norm[...] + x.mean(axis=0)
            return self.head(jax.nn.relu(x))

    for frozen in ((), ("trunk",)):
        own = branch(make=Encoder, frozen=frozen)
        before = start((own, own), KEYS).variables[0]
        after = train((own, own), pairs, keys=KEYS, settings=QUICK).variables[0]
        same = (before["trunk"]["kernel"][...] == after["trunk"]["kernel"][...]).all()
        assert same == bool(frozen)
        assert (before["head"]["kernel"][...] != after["head"]["kernel"][...]).any()
        assert (after["norm"][...] != 0).any()


def test_bad_input_is_refused_before_any_work(pairs, tmp_path):
    with pytest.raises(ValueError, match="same number of recordings"):
        train(BRANCHES, (pairs[0], pairs[1][:5]), keys=KEYS)
    broken = pairs[0].copy()
    broken[3, 2, 1] = np.nan
    with pytest.raises(ValueError, match=r"pairs\[0\] must be finite, but row 3 has NaN"):
        train(BRANCHES, (broken, pairs[1]), keys=KEYS)
    with pytest.raises(TypeError, match="tuple of two"):
        train(BRANCHES, pairs[0], keys=KEYS)
    with pytest.raises(ValueError, match=r"keys must have shape \(seeds,\)"):
        train(BRANCHES, pairs, keys=jax.random.key(0))
    with pytest.raises(ValueError, match="epochs must be at least 1"):
        Settings(epochs=0)
    with pytest.raises(ValueError, match="learning_rate must be above zero"):
        Settings(learning_rate=-1.0)
    with pytest.raises(ValueError, match="ema must be between 0 and 1"):
        Settings(ema=1.0)
    with pytest.raises(ValueError, match="view must be between 0 and 1"):
        encode(start(BRANCHES, KEYS), pairs[0], view=2)
    with pytest.raises(ValueError, match="at least one recording"):
        encode(start(BRANCHES, KEYS), pairs[0][:0], view=0)


# Checkpoints.


def test_a_resumed_training_ends_where_an_unbroken_one_does(pairs, tmp_path):
    unbroken = train(BRANCHES, pairs, keys=KEYS, settings=QUICK)

    def interrupt(trained):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            BRANCHES,
            pairs,
            keys=KEYS,
            settings=QUICK,
            folder=tmp_path / "run",
            watch=interrupt,
            watch_every=2,
        )
    resumed = train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path / "run")
    np.testing.assert_array_equal(flat(resumed), flat(unbroken))
    np.testing.assert_array_equal(resumed.losses, unbroken.losses)
    finished = train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path / "run")
    np.testing.assert_array_equal(flat(finished), flat(unbroken))
    with pytest.raises(FileExistsError, match="holds checkpoints up to epoch 3"):
        train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path / "run", resume=False)


def test_a_folder_of_another_training_is_refused_and_says_what_differs(pairs, tmp_path):
    train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)
    other = dataclasses.replace(QUICK, epochs=2)
    with pytest.raises(ValueError, match=r"another training \(other epochs: 3 there, 2 now\)"):
        train(BRANCHES, pairs, keys=KEYS, settings=other, folder=tmp_path)
    with pytest.raises(ValueError, match=r"\(other pairs\)"):
        train(BRANCHES, pairs[::-1], keys=KEYS, settings=QUICK, folder=tmp_path)
    with pytest.raises(ValueError, match=r"\(other keys\)"):
        train(BRANCHES, pairs, keys=KEYS[::-1], settings=QUICK, folder=tmp_path)


@pytest.mark.slow
def test_a_loss_that_is_no_number_stops_with_the_last_good_checkpoint(pairs, tmp_path):
    bad = branch(augment=lambda key, x: x * jnp.float32(1e38) * 1e38)
    with pytest.raises(NonFiniteLossError, match=r"at step 0 \(epoch 1 of 3.*no checkpoint"):
        train((branch(), bad), pairs, keys=KEYS, settings=QUICK)

    class Explodes(nnx.Module):
        """Counts its training steps and gives NaN at the seventh."""

        def __init__(self, key):
            self.steps = nnx.BatchStat(jnp.zeros(()))
            self.head = nnx.Linear(48, 4, rngs=nnx.Rngs(key))

        def __call__(self, x, *, train=False):
            self.steps[...] += 1
            z = self.head(x.reshape(len(x), -1))
            return jnp.where(self.steps[...] == 7, jnp.nan, z)

    with pytest.raises(NonFiniteLossError, match=r"at step 6 \(epoch 2 of 3") as error:
        train(
            (branch(make=Explodes), branch()),
            pairs,
            keys=KEYS,
            settings=QUICK,
            folder=tmp_path / "run",
        )
    kept = str(error.value).split("checkpoint is ")[1].rstrip(".")
    assert kept == str(tmp_path / "run" / "1")
    assert os.path.isdir(kept)


@pytest.mark.slow
def test_weights_that_a_bad_gradient_spoils_are_never_kept(pairs, tmp_path):
    """A finite loss whose gradient is NaN: in the last step of all, and before a checkpoint."""

    class Spoils(nnx.Module):
        def __init__(self, key):
            self.steps = nnx.BatchStat(jnp.zeros(()))
            self.head = nnx.Linear(48, 4, rngs=nnx.Rngs(key))

        def __call__(self, x, *, train=False):
            self.steps[...] += 1
            z = self.head(x.reshape(len(x), -1))
            # The square root of zero, at the eighth step: 0, with an infinite slope times zero.
            zero = jnp.sum(jnp.square(0 * self.head.bias[...]))
            return z + jnp.sqrt(zero + jnp.where(self.steps[...] == 8, 0.0, 1.0))

    own = (branch(make=Spoils), branch())
    with pytest.raises(
        NonFiniteLossError, match=r"or its gradient is not finite at step 7"
    ) as error:
        train(own, pairs, keys=KEYS, settings=QUICK, folder=tmp_path / "run")
    assert str(error.value).split("checkpoint is ")[1].rstrip(".") == str(tmp_path / "run" / "1")
    with pytest.raises(NonFiniteLossError, match="at step 7"):
        train(own, pairs, keys=KEYS, settings=Settings(epochs=2, batch_size=8))


@pytest.mark.slow
def test_no_batch_has_a_single_pair(pairs):
    few = tuple(x[:7] for x in pairs)
    found = train(BRANCHES, few, keys=KEYS, settings=Settings(epochs=1, batch_size=2))
    assert (found.losses > 0).all()


def test_the_temperature_stays_within_its_bound(pairs):
    settings = Settings(epochs=10, batch_size=8, temperature=0.0101, learning_rate=0.1)
    trained = train(BRANCHES, (pairs[0], pairs[0]), keys=KEYS, settings=settings)
    assert np.isfinite(trained.losses).all()


KILLED = """
    import sys
    import jax, numpy as np
    from perfalign_jax.har.nn import encoders, training
    x = np.random.default_rng(0).normal(size=(24, 16, 6)).astype("float32")
    branch = encoders.Branch(
        make=lambda key: encoders.SeriesEncoder(key, channels=6, latent=4, widths=(8,), hidden=8),
        augment=lambda key, x: x + 0.1 * jax.random.normal(key, x.shape),
        prepare=lambda x: x,
        name="small",
    )
    trained = training.train(
        (branch, branch), (x, x[:, ::-1].copy()),
        keys=jax.random.split(jax.random.key(0), 2),
        settings=training.Settings(epochs=25, batch_size=8),
        folder=sys.argv[1],
        watch=lambda t: print("epoch", flush=True) or np.zeros(2), watch_every=1,
    )
    z = training.encode(trained, x, view=0)
    np.savez(sys.argv[2], z=z, losses=trained.losses)
"""


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_end(tmp_path):
    """kill -9 wherever it happens to be; the second run ends like an unbroken one."""
    script = tmp_path / "train.py"
    script.write_text(textwrap.dedent(KILLED))

    def command(folder, out):
        return [sys.executable, str(script), str(tmp_path / folder), str(tmp_path / out)]

    unbroken = subprocess.run(command("a", "a.npz"), capture_output=True, text=True, check=False)
    assert unbroken.returncode == 0, unbroken.stderr
    with subprocess.Popen(
        command("b", "b.npz"), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        for _ in range(8):
            assert process.stdout.readline() == "epoch\n"
        process.send_signal(signal.SIGKILL)  # while a checkpoint is written
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "b.npz").exists()
    resumed = subprocess.run(command("b", "b.npz"), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    # The kill may lose the epoch under way and the checkpoint that was being written: 6 to 8 of the
    # 25 epochs are kept, or one more where the kill came late.
    assert 16 <= resumed.stdout.count("epoch") <= 19
    with np.load(tmp_path / "a.npz") as a, np.load(tmp_path / "b.npz") as b:
        np.testing.assert_array_equal(a["z"], b["z"])
        np.testing.assert_array_equal(a["losses"], b["losses"])


def test_a_folder_without_a_checkpoint_takes_any_training(pairs, tmp_path):
    (tmp_path / "training.json").write_text("{")  # killed before the first epoch was over
    train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)
    other = dataclasses.replace(QUICK, epochs=4)
    with pytest.raises(ValueError, match=r"epochs: 3 there, 4 now"):
        train(BRANCHES, pairs, keys=KEYS, settings=other, folder=tmp_path)
    (tmp_path / "training.json").write_text("[]")
    with pytest.raises(ValueError, match="missing or damaged"):
        train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)
    (tmp_path / "training.json").unlink()
    with pytest.raises(ValueError, match="missing or damaged"):
        train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)


def test_a_damaged_checkpoint_is_named(pairs, tmp_path):
    train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)
    for path in (tmp_path / "3").rglob("*"):
        if path.parent.name == "d":
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"checkpoint .*/3 cannot be read.*delete that folder"):
        train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)
    shutil.rmtree(tmp_path / "3")
    again = train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)
    assert again.losses.shape == (3, 2)


def test_a_bit_that_has_changed_in_a_checkpoint_is_noticed(pairs, tmp_path, rng):
    train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)
    largest = max((tmp_path / "3").rglob("d/*"), key=lambda path: path.stat().st_size)
    content = largest.read_bytes()
    for place in rng.integers(len(content), size=5):
        broken = bytearray(content)
        broken[place] ^= 16
        largest.write_bytes(broken)
        with pytest.raises(ValueError, match=r"checkpoint .*/3 cannot be read"):
            train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)
    largest.write_bytes(content)
    train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)


def test_a_training_in_another_precision_is_another(pairs, tmp_path):
    train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)
    with (
        jax.enable_x64(True),
        pytest.raises(ValueError, match=r"another training \(other 64-bit mode\)"),
    ):
        train(BRANCHES, pairs, keys=KEYS, settings=QUICK, folder=tmp_path)


def test_settings_take_numpys_numbers(pairs, tmp_path):
    settings = Settings(epochs=np.int64(1), learning_rate=np.float32(1e-3), ema=np.float32(0.9))
    found = train(BRANCHES, pairs, keys=KEYS, settings=settings, folder=tmp_path)
    assert found.losses.shape == (1, 2)


def test_bad_input_is_refused_before_the_work(pairs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="folder must be a folder, got the file"):
        train(BRANCHES, pairs, keys=KEYS, folder=tmp_path / "file")
    with pytest.raises(TypeError, match="branches must be a tuple of two"):
        train((*BRANCHES, BRANCHES[0]), pairs, keys=KEYS)
    with pytest.raises(TypeError, match="ema must be a number"):
        Settings(ema="a")

    def wide(key):
        return encoders.SeriesEncoder(key, channels=3, latent=5, widths=(8,), hidden=8)

    with pytest.raises(ValueError, match="latents of one size, got 4 and 5"):
        train((branch(), branch(make=wide)), pairs, keys=KEYS)
    with pytest.raises(TypeError, match=r"jax\.random\.key"):
        train(BRANCHES, pairs, keys=jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match="1/100"):
        Settings(temperature=0.001)
    with pytest.raises(ValueError, match="watch must return 2 numbers"):
        train(
            BRANCHES, pairs, keys=KEYS, settings=QUICK, watch=lambda trained: [1.0], watch_every=1
        )
    with pytest.raises(ValueError, match="batch_size"):
        encode(start(BRANCHES, KEYS), pairs[0], view=0, batch_size=0)


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ([[1.0]], TypeError, "must be an array of recordings, got list"),
        (np.full((4, 16, 3), "a"), TypeError, "must hold real numbers, got dtype <U1"),
        (np.ones((4, 16, 3), complex), TypeError, "must hold real numbers, got dtype complex128"),
        (np.ones((4, 3)), ValueError, r"must .* have shape \(n, time, ...\), got shape \(4, 3\)"),
        (np.full((4, 16, 3), np.inf), ValueError, "must be finite, but row 0 has infinity"),
    ],
)
def test_what_is_no_recording_is_refused_by_both_doors(bad, error, message):
    with pytest.raises(error, match=rf"^pairs\[1\] {message}"):
        train(BRANCHES, (np.ones((4, 16, 3), np.float32), bad), keys=KEYS)
    with pytest.raises(error, match=f"^x {message}"):
        encode(start(BRANCHES, KEYS), bad, view=0)
