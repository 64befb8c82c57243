"""The ResNet-18 trunk: parity with PyTorch, weights in files, and its transforms.

``tests/data/resnet18_golden.npz`` holds what the PyTorch network below computes from the weights
and images of ``random_weights`` and ``random_images``, so that parity is tested where PyTorch is
not installed, too. ``python tests/test_har_resnet.py`` writes it anew (with PyTorch, in seconds).
"""

import functools
import re
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from perfalign_jax.har.nn import resnet

pytestmark = pytest.mark.usefixtures("promoting")

GOLDEN = Path(__file__).parent / "data" / "resnet18_golden.npz"
SIZES = [(64, 64), (112, 96), (75, 61)]
TRAINED = (4, 48, 40)  # images, height and width of the training batches
NORMS_KEPT = ("bn1", "layer2.0.downsample.1", "layer4.1.bn2")  # in the golden file
TOLERANCE = 1e-4  # absolute, on features whose standard deviation is between 0.3 and 3


def layers():
    """Torchvision's names of the convolutions with their shapes, and of the normalisations."""
    convolutions, norms = {"conv1": (64, 3, 7, 7)}, {"bn1": 64}
    inputs = 64
    for layer, outputs in enumerate((64, 128, 256, 512), start=1):
        for block in (0, 1):
            name = f"layer{layer}.{block}"
            convolutions[f"{name}.conv1"] = (outputs, inputs, 3, 3)
            convolutions[f"{name}.conv2"] = (outputs, outputs, 3, 3)
            norms |= {f"{name}.bn1": outputs, f"{name}.bn2": outputs}
            if inputs != outputs:
                convolutions[f"{name}.downsample.0"] = (outputs, inputs, 1, 1)
                norms[f"{name}.downsample.1"] = outputs
            inputs = outputs
    return convolutions, norms


@functools.cache
def random_weights(seed):
    """Weights and batch statistics under torchvision's names that keep activations of order one.

    NumPy promises that the numbers of ``RandomState`` never change.
    """
    draw = np.random.RandomState(seed)
    convolutions, norms = layers()
    weights = {
        f"{name}.weight": draw.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        for name, shape in convolutions.items()
    }
    for name, channels in norms.items():
        weights |= {
            f"{name}.weight": draw.uniform(0.4, 1.2, channels),
            f"{name}.bias": draw.normal(0.0, 0.3, channels),
            f"{name}.running_mean": draw.normal(0.0, 0.5, channels),
            f"{name}.running_var": draw.uniform(0.5, 3.0, channels),
        }
    return {name: value.astype(np.float32) for name, value in weights.items()}


def random_images(seed, count, height, width):
    """Smooth images, of mean zero and variance of order one, as (count, height, width, 3)."""
    draw = np.random.RandomState(seed)
    coarse = draw.standard_normal((count, height // 4 + 1, width // 4 + 1, 3))
    smooth = np.repeat(np.repeat(coarse, 4, axis=1), 4, axis=2)[:, :height, :width]
    return (smooth + 0.5 * draw.standard_normal(smooth.shape)).astype(np.float32)


def torch_resnet18(weights):
    """An independent ResNet-18 in PyTorch, which returns the pooled features and their map."""
    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
            self.bn1 = nn.BatchNorm2d(outputs)
            self.conv2 = nn.Conv2d(outputs, outputs, 3, stride=1, padding=1, bias=False)
            self.bn2 = nn.BatchNorm2d(outputs)
            if stride > 1:
                self.downsample = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                    nn.BatchNorm2d(outputs),
                )
            else:
                self.downsample = nn.Identity()

        def forward(self, x):
            inner = torch.relu(self.bn1(self.conv1(x)))
            return torch.relu(self.bn2(self.conv2(inner)) + self.downsample(x))

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
            self.bn1 = nn.BatchNorm2d(64)
            self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
            inputs = 64
            for layer, outputs in enumerate((64, 128, 256, 512), start=1):
                blocks = Block(inputs, outputs, min(layer, 2)), Block(outputs, outputs, 1)
                self.add_module(f"layer{layer}", nn.Sequential(*blocks))
                inputs = outputs

        def forward(self, images):  # (b, h, w, 3), as in the package
            x = self.maxpool(torch.relu(self.bn1(self.conv1(images.permute(0, 3, 1, 2)))))
            x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
            return x.mean(dim=(2, 3)), x.permute(0, 2, 3, 1)

    network = Network().eval()
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    names = network.load_state_dict(tensors, strict=False)
    assert not names.unexpected_keys
    assert all(name.endswith("num_batches_tracked") for name in names.missing_keys)
    return network


def running_statistics(network):
    """The running statistics of a PyTorch network, by name."""
    return {n: v.numpy() for n, v in network.state_dict().items() if ".running_" in n}


def write_golden():
    """Write what PyTorch computes from the weights and images of seed 1."""
    import torch

    network = torch_resnet18(random_weights(1))
    arrays = {}
    with torch.no_grad():
        for height, width in SIZES:
            images = torch.from_numpy(random_images(1, 2, height, width))
            arrays[f"pooled_{height}x{width}"], features = network(images)
        arrays["map_75x61"] = features[:1]
        network.train()
        arrays["trained"] = network(torch.from_numpy(random_images(1, *TRAINED)))[0][:2]
    for norm in NORMS_KEPT:
        for name in (f"{norm}.running_mean", f"{norm}.running_var"):
            arrays[name] = running_statistics(network)[name]
    GOLDEN.parent.mkdir(exist_ok=True)
    np.savez_compressed(GOLDEN, **{name: np.asarray(value) for name, value in arrays.items()})


@pytest.fixture
def folder():
    """A folder that is removed at once: the files of weights have 45 MB each."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@functools.cache
def loaded(seed):
    """A trunk split in two, with random weights that came through a file."""
    model = resnet.ResNet18(jax.random.key(0))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "weights.safetensors"
        safetensors.numpy.save_file(random_weights(seed), path)
        resnet.load_resnet18(model, path)
    return nnx.split(model)


def trunk(seed):
    """A trunk of its own with those weights: without ``copy``, merging shares its variables."""
    return nnx.merge(*loaded(seed), copy=True)


@functools.partial(jax.jit, static_argnums=(0, 3))
def apply(graph, state, images, train):
    """Pooled features, their map, and the state after it."""
    model = nnx.merge(graph, state)
    features = model.feature_map(images, train=train)
    return jnp.mean(features, axis=(1, 2)), features, nnx.state(model)


def by_name(state):
    """A state's arrays under torchvision's names, in torchvision's layout."""
    flat = {}
    for path, variable in nnx.to_flat_state(state):
        *parts, last = map(str, path)
        value = np.asarray(variable[...])
        last = {"mean": "running_mean", "var": "running_var"}.get(last, last)
        last = "weight" if last in ("kernel", "scale") else last
        flat[".".join([*parts, last])] = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
    return flat


def largest_difference(a, b):
    a, b = np.asarray(a), np.asarray(b)
    assert a.shape == b.shape
    return np.abs(a - b).max()


# Parity


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_features_equal_the_golden_ones(height, width):
    golden = np.load(GOLDEN)
    pooled, features, _ = apply(*loaded(1), random_images(1, 2, height, width), False)
    wanted = golden[f"pooled_{height}x{width}"]
    assert 0.3 < wanted.std() < 3
    assert largest_difference(pooled, wanted) < TOLERANCE
    if (height, width) == (75, 61):
        assert largest_difference(features[:1], golden["map_75x61"]) < TOLERANCE


def test_training_equals_the_golden_one():
    golden = np.load(GOLDEN)
    pooled, _, state = apply(*loaded(1), random_images(1, *TRAINED), True)
    assert 0.3 < golden["trained"].std() < 3
    assert largest_difference(pooled[:2], golden["trained"]) < TOLERANCE
    ours = by_name(state)
    for norm in NORMS_KEPT:
        for name in (f"{norm}.running_mean", f"{norm}.running_var"):
            assert largest_difference(ours[name], golden[name]) < TOLERANCE, name


def test_golden_file_is_small():
    assert GOLDEN.stat().st_size < 50_000


# The network


def test_new_trunk_has_he_normal_kernels_and_neutral_norms():
    model = resnet.ResNet18(jax.random.key(3))
    state = by_name(nnx.state(model))
    assert sum(v.size for v in jax.tree.leaves(nnx.state(model, nnx.Param))) == 11_176_512
    assert all(value.dtype == np.float32 for value in state.values())
    convolutions, norms = layers()
    assert {name: state[f"{name}.weight"].shape for name in convolutions} == convolutions
    for name, shape in convolutions.items():
        wanted = np.sqrt(2 / (shape[0] * shape[2] * shape[3]))
        np.testing.assert_allclose(state[f"{name}.weight"].std(), wanted, rtol=0.05)
    for name in norms:
        for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
            assert (state[f"{name}.{part}"] == value).all()
    other = by_name(nnx.state(resnet.ResNet18(jax.random.key(4))))
    assert (other["conv1.weight"] != state["conv1.weight"]).any()


def test_jit_equals_eager_and_a_frozen_trunk_stays_as_it_is():
    graph, state = loaded(1)
    model = trunk(1)
    before = by_name(nnx.state(model))
    images = jnp.asarray(random_images(1, 2, 64, 64))
    pooled = model(images)
    assert pooled.dtype == jnp.float32
    assert largest_difference(pooled, apply(graph, state, images, False)[0]) < 1e-5
    after = by_name(nnx.state(model))
    assert all((after[name] == value).all() for name, value in before.items())


def test_training_moves_only_the_running_statistics():
    graph, state = loaded(1)
    before, after = (
        by_name(state),
        by_name(apply(graph, state, random_images(1, *TRAINED), True)[2]),
    )
    moved = {name for name, value in before.items() if (after[name] != value).any()}
    assert moved == {name for name in before if ".running_" in name}


@pytest.mark.slow
def test_vmap_over_trunks_equals_a_loop():
    graph, first = loaded(1)
    states = [first, loaded(2)[1]]
    images = random_images(6, 2, 16, 16)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
    together = jax.vmap(lambda state: apply(graph, state, images, False)[0])(stacked)
    for pooled, state in zip(together, states, strict=True):
        assert largest_difference(pooled, apply(graph, state, images, False)[0]) < TOLERANCE
    train = jax.vmap(lambda state: apply(graph, state, images, True)[2])
    assert jax.eval_shape(train, stacked) == jax.eval_shape(lambda: stacked)
    with pytest.raises(ValueError, match=r"single trunk.*\(64,\), got shape \(2, 64\)"):
        resnet.save_resnet18(nnx.merge(graph, stacked), "batch.safetensors")


def test_mixed_precision_keeps_the_state_in_float32():
    state = loaded(1)[1]
    half = nnx.eval_shape(lambda: resnet.ResNet18(jax.random.key(0), dtype=jnp.bfloat16))
    graph = nnx.graphdef(half)
    images = random_images(1, *TRAINED)
    pooled, features, after = apply(graph, state, images, True)
    assert pooled.dtype == features.dtype == jnp.bfloat16
    assert {value.dtype for value in by_name(after).values()} == {np.dtype(np.float32)}
    whole = np.asarray(apply(*loaded(1), images, True)[0])
    error = np.asarray(pooled, np.float32) - whole
    assert 0 < error.std() < 0.05 * whole.std()
    for leaf in jax.tree.leaves(
        jax.eval_shape(lambda x: apply(graph, state, x, False)[:2], images)
    ):
        assert leaf.dtype == jnp.bfloat16


def test_float32_is_kept_in_64_bit_mode(x64):
    def step(images):
        graph, state = nnx.split(resnet.ResNet18(jax.random.key(0)))
        wide = images.astype(jnp.float64)
        return apply(graph, state, images, False), apply(graph, state, wide, True)

    leaves = jax.tree.leaves(jax.eval_shape(step, jnp.zeros((2, 9, 9, 3), jnp.float32)))
    assert {leaf.dtype for leaf in leaves} == {np.dtype(np.float32)}


def test_images_that_do_not_fit_are_refused():
    model = trunk(1)
    with pytest.raises(TypeError, match=r"floating point .*, got dtype uint8\."):
        model(jnp.zeros((1, 32, 32, 3), jnp.uint8))
    for shape in ((32, 32, 3), (1, 3, 32, 32), (0, 32, 32, 3), (1, 2, 32, 32, 3)):
        message = re.escape(f"images must have shape (b, h, w, 3), got shape {shape}.")
        with pytest.raises(ValueError, match=message):
            model(jnp.zeros(shape))
    with pytest.raises(ValueError, match=r"more than one value.*map of shape \(1, 1, 1, 512\)"):
        jax.eval_shape(lambda x: nnx.clone(model)(x, train=True), jnp.zeros((1, 32, 32, 3)))
    with pytest.raises(TypeError, match="dtype must be a floating-point one, got"):
        resnet.ResNet18(jax.random.key(0), dtype=jnp.int32)


# Weights in files


@pytest.fixture
def plain():
    """The smallest right content of a file: zeros, and ones for the variances."""
    return {
        name: np.full(value.shape, float(name.endswith("running_var")), np.float32)
        for name, value in by_name(loaded(1)[1]).items()
    }


def test_saved_trunk_is_loaded_and_its_names_are_those_of_pytorch(folder):
    model = trunk(1)
    resnet.save_resnet18(model, folder / "a.safetensors")
    saved = safetensors.numpy.load_file(folder / "a.safetensors")
    wanted = random_weights(1)
    assert set(saved) == set(wanted)
    assert all((saved[name] == value).all() for name, value in wanted.items())
    new = trunk(2)
    resnet.load_resnet18(new, folder / "a.safetensors")
    assert all((by_name(nnx.state(new))[name] == value).all() for name, value in wanted.items())


def test_classifier_and_counters_are_not_used(folder, plain):
    plain |= {"fc.weight": np.ones((1000, 512), np.float64), "fc.bias": np.ones(1000, np.float64)}
    plain |= {"layer3.0.downsample.1.num_batches_tracked": np.array(3)}
    safetensors.numpy.save_file(plain, folder / "a.safetensors")
    model = trunk(1)
    resnet.load_resnet18(model, folder / "a.safetensors")
    assert not np.asarray(model.conv1.kernel[...]).any()


def without(name):
    return lambda arrays: arrays.pop(name)


def put(name, value):
    return lambda arrays: arrays.update({name: value})


def spoil(name, value, count=1):
    return lambda arrays: arrays[name].ravel().__setitem__(slice(count), value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            without("layer2.0.downsample.0.weight"),
            " has no entry 'layer2.0.downsample.0.weight'; expected one of shape (128, 64, 1, 1)",
        ),
        (
            lambda arrays: [arrays.pop(name) for name in list(arrays) if name.startswith("bn1")],
            " has no entry 'bn1.bias' (and 3 more such); expected one of shape (64,)",
        ),
        (
            put("layer1.2.conv1.weight", np.zeros((64, 64, 3, 3), np.float32)),
            " has an entry 'layer1.2.conv1.weight' of shape (64, 64, 3, 3), which",
        ),
        (
            put("layer1.2.bn1.num_batches_tracked", np.array(0)),
            " has an entry 'layer1.2.bn1.num_batches_tracked' of shape (), which",
        ),
        (
            put("conv1.weight", np.zeros((7, 7, 3, 64), np.float32)),
            ": 'conv1.weight' must have shape (64, 3, 7, 7), got shape (7, 7, 3, 64).",
        ),
        (
            put("layer4.1.bn2.bias", np.zeros(512, np.float16)),
            ": 'layer4.1.bn2.bias' must be float32, got F16.",
        ),
        (
            spoil("layer3.0.conv2.weight", np.nan),
            ": 'layer3.0.conv2.weight' must be finite, got 1 of 589824 values that are NaN",
        ),
        (
            spoil("bn1.running_mean", -np.inf, count=2),
            ": 'bn1.running_mean' must be finite, got 2 of 64 values that are NaN or infinite.",
        ),
        (
            spoil("layer1.0.bn2.running_var", -0.5),
            ": 'layer1.0.bn2.running_var' must not be negative, got -0.5.",
        ),
    ],
)
def test_wrong_files_are_refused_and_leave_the_trunk_as_it_is(folder, plain, change, message):
    change(plain)
    path = folder / "a.safetensors"
    safetensors.numpy.save_file(plain, path)
    model = trunk(1)
    with pytest.raises(ValueError, match=re.escape(f"{path}{message}")):
        resnet.load_resnet18(model, path)
    assert all((by_name(nnx.state(model))[n] == v).all() for n, v in random_weights(1).items())


def test_truncated_files_are_refused(folder):
    for content in (b"", b"short", b"\x10" + bytes(200)):
        (folder / "a.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            resnet.load_resnet18(trunk(1), folder / "a.safetensors")


def test_paths_and_models_are_checked(folder):
    model = trunk(1)
    with pytest.raises(FileNotFoundError, match=r"there is no file .*none\.safetensors"):
        resnet.load_resnet18(model, folder / "none.safetensors")
    with pytest.raises(IsADirectoryError, match="is a folder, not a file of weights"):
        resnet.load_resnet18(model, folder)
    with pytest.raises(ValueError, match=r"must end in \.safetensors, got .*a\.pth; safetensors"):
        resnet.load_resnet18(model, folder / "a.pth")
    with pytest.raises(ValueError, match=r"path must end in \.safetensors, got .*a\.pth"):
        resnet.save_resnet18(model, folder / "a.pth")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        resnet.save_resnet18(model, folder / "none" / "a.safetensors")
    for call in (resnet.load_resnet18, resnet.save_resnet18):
        with pytest.raises(TypeError, match="model must be a ResNet18, got dict"):
            call({}, folder / "a.safetensors")


if __name__ == "__main__":
    write_golden()
