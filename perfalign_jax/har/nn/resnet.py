"""ResNet-18 without its classifier: 512 features of an image, and its weights in files.

The architecture is the 18-layer network of He, Zhang, Ren and Sun (Deep residual learning for
image recognition, 2016, Table 1) with the arithmetic of its common PyTorch version: symmetric
padding, a projection at the first block of layers 2 to 4, and batch normalisation whose running
variance is the unbiased one. Weights trained there are read from a file under torchvision's names
(``conv1.weight``, ``layer2.0.downsample.1.running_var``), with every name, shape and value checked;
nothing is ever downloaded. Without such a file the weights are random, and have to be trained.

On accelerators that shorten the factors of a convolution, a call inside
``jax.default_matmul_precision("highest")`` keeps float32 whole.
"""

import functools
import math
import os
from collections.abc import Mapping, MutableSequence, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key

from perfalign_jax import _checks, serialization

__all__ = ["ResNet18", "load_resnet18", "save_resnet18"]

# Of red, green and blue over ImageNet's training images, on a scale from 0 to 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_EPSILON = 1e-5  # added to a variance before its root
_KEPT = 0.9  # share of the running statistics that one training batch leaves as it was

# What this module calls the entries of a layer, and what they are called in a file.
_IN_FILE = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_IN_FILE |= {"mean": "running_mean", "var": "running_var"}


class _Convolution(nnx.Module):
    """Convolution with an odd square kernel, without a bias."""

    def __init__(
        self, inputs: int, outputs: int, *, size: int, stride: int, dtype: DTypeLike
    ) -> None:
        self.kernel = nnx.Param(jnp.zeros((size, size, inputs, outputs), jnp.float32))
        self.stride = stride
        self.dtype = dtype

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        x, kernel = x.astype(self.dtype), self.kernel[...].astype(self.dtype)
        size, stride = kernel.shape[0], self.stride
        pad = size // 2  # on both sides; "SAME" would pad one side less for stride two
        h, w = (-(-length // stride) for length in x.shape[1:3])
        if min(h, w) >= size:
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (stride, stride),
                ((pad, pad), (pad, pad)),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        # Where the map is smaller than the kernel, XLA's convolution on CPU, or its gradient,
        # takes a hundred times as long as the product that it stands for.
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        seen = [
            x[:, i : i + stride * (h - 1) + 1 : stride, j : j + stride * (w - 1) + 1 : stride]
            for i in range(size)
            for j in range(size)
        ]
        return jnp.tensordot(jnp.concatenate(seen, axis=3), kernel.reshape(-1, kernel.shape[3]), 1)


class _BatchNorm(nnx.Module):
    """Batch normalisation in float32 or wider, whose running variance is the unbiased one.

    nnx.BatchNorm keeps the biased variance, and rounds the statistics to the computing dtype.
    """

    def __init__(self, channels: int) -> None:
        self.scale = nnx.Param(jnp.ones(channels, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(channels, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(channels, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(channels, jnp.float32))

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h w c"]:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        if train:
            count = x.size // x.shape[-1]
            if count < 2:
                raise ValueError(
                    "images must leave more than one value for each channel to train batch "
                    f"normalisation, got a feature map of shape {x.shape}; use more or larger ones."
                )
            mean = jnp.mean(wide, axis=(0, 1, 2))
            var = jnp.mean(jnp.square(wide - mean[None, None, None]), axis=(0, 1, 2))
            for running, batch in ((self.mean, mean), (self.var, var * (count / (count - 1)))):
                batch = jax.lax.stop_gradient(batch).astype(jnp.float32)
                running[...] = _KEPT * running[...] + (1 - _KEPT) * batch
        else:
            mean, var = self.mean[...], self.var[...]
        factor = self.scale[...] * jax.lax.rsqrt(var + _EPSILON)
        mean, factor, bias = (v[None, None, None] for v in (mean, factor, self.bias[...]))
        return ((wide - mean) * factor + bias).astype(x.dtype)


class _Block(nnx.Module):
    """Two convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, dtype: DTypeLike) -> None:
        self.conv1 = _Convolution(inputs, outputs, size=3, stride=stride, dtype=dtype)
        self.bn1 = _BatchNorm(outputs)
        self.conv2 = _Convolution(outputs, outputs, size=3, stride=1, dtype=dtype)
        self.bn2 = _BatchNorm(outputs)
        way = []  # a convolution and its normalisation where the shape changes, else nothing
        if stride != 1 or inputs != outputs:
            way = [
                _Convolution(inputs, outputs, size=1, stride=stride, dtype=dtype),
                _BatchNorm(outputs),
            ]
        self.downsample = nnx.List(way)

    def __call__(self, x: Float[Array, "b h w c"], *, train: bool) -> Float[Array, "b h2 w2 c2"]:
        y = nnx.relu(self.bn1(self.conv1(x), train=train))
        y = self.bn2(self.conv2(y), train=train)
        if len(self.downsample):
            x = self.downsample[1](self.downsample[0](x), train=train)
        return nnx.relu(x + y)


class ResNet18(nnx.Module):
    """The 18-layer residual network up to its global average: images in, 512 features out.

    Its 11,176,512 parameters (``nnx.Param``) and its running statistics (``nnx.BatchStat``) are
    float32, whatever the computing dtype. A new one has random weights: normal kernels of variance
    2 / (fan-out), scales one, biases zero. ``load_resnet18`` replaces them by those of a file.

    A frozen trunk is called with ``train=False`` and gets no gradient of its ``nnx.Param``. With
    ``train=True`` each call normalises by its own batch and moves the running statistics a tenth of
    the way towards it; inside ``jax.jit`` they come back through ``nnx.split``.

    Args:
        key: random key of the kernels.
        dtype: floating-point dtype that the convolutions are computed in; the normalisation is
            computed in float32 even where it is shorter.

    Raises:
        TypeError: if the dtype or the images are no floating-point ones.
        ValueError: if the images have another shape, or are too few to train.

    Source: He et al. (2016); the names of the layers are torchvision's.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from perfalign_jax.har.nn import resnet
        >>> trunk = resnet.ResNet18(jax.random.key(0))
        >>> images = jnp.zeros((2, 33, 20, 3))
        >>> jax.eval_shape(trunk.feature_map, images).shape
        (2, 2, 1, 512)
        >>> jax.eval_shape(trunk, images).shape
        (2, 512)
    """

    def __init__(self, key: Key[Array, ""], *, dtype: DTypeLike = jnp.float32) -> None:
        _checks.key(key)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise TypeError(f"dtype must be a floating-point one, got {dtype!r}.")
        self.conv1 = _Convolution(3, 64, size=7, stride=2, dtype=dtype)
        self.bn1 = _BatchNorm(64)
        self.layer1 = _layer(64, 64, stride=1, dtype=dtype)
        self.layer2 = _layer(64, 128, stride=2, dtype=dtype)
        self.layer3 = _layer(128, 256, stride=2, dtype=dtype)
        self.layer4 = _layer(256, 512, stride=2, dtype=dtype)
        kernels = [node for path, node in nnx.iter_graph(self) if path[-1:] == ("kernel",)]
        values = _draw_kernels(key, tuple(kernel.shape for kernel in kernels))
        for kernel, value in zip(kernels, values, strict=True):
            kernel[...] = value

    def feature_map(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b h32 w32 512"]:
        """Return the features at every place, a map of ``ceil(h / 32)`` by ``ceil(w / 32)``.

        Images are red, green and blue, less ``IMAGENET_MEAN`` and in units of ``IMAGENET_STD``.
        """
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(
                "images must be floating point (less IMAGENET_MEAN, in units of IMAGENET_STD), "
                f"got dtype {images.dtype}."
            )
        if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
            raise ValueError(f"images must have shape (b, h, w, 3), got shape {images.shape}.")
        x = nnx.relu(self.bn1(self.conv1(images), train=train))
        x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            for block in layer:
                x = block(x, train=train)
        return x

    def __call__(
        self, images: Float[Array, "b h w 3"], *, train: bool = False
    ) -> Float[Array, "b 512"]:
        """Return the features of each image: the mean of its ``feature_map`` over the places."""
        return jnp.mean(self.feature_map(images, train=train), axis=(1, 2))


def _layer(inputs: int, outputs: int, *, stride: int, dtype: DTypeLike) -> MutableSequence[_Block]:
    return nnx.List(
        [
            _Block(inputs, outputs, stride=stride, dtype=dtype),
            _Block(outputs, outputs, stride=1, dtype=dtype),
        ]
    )


@functools.partial(jax.jit, static_argnums=1)
def _draw_kernels(key: Key[Array, ""], shapes: tuple[tuple[int, ...], ...]) -> list[Array]:
    # All are cut from one draw: random numbers of twelve shapes would take seconds to compile.
    ends = np.cumsum([math.prod(shape) for shape in shapes]).tolist()
    flat = jax.random.normal(key, (ends[-1],), jnp.float32)
    return [
        flat[low:high].reshape(shape) * math.sqrt(2 / (shape[0] * shape[1] * shape[3]))
        for shape, low, high in zip(shapes, (0, *ends[:-1]), ends, strict=True)
    ]


def load_resnet18(model: ResNet18, path: str | os.PathLike[str]) -> None:
    """Give a trunk the weights and running statistics of a file under torchvision's names.

    The classifier (``fc.*``) and the counters (``*.num_batches_tracked``) of the ``.safetensors``
    file are not used. The trunk changes only after the whole file has been found right.

    Raises:
        FileNotFoundError, IsADirectoryError: if there is no such file.
        TypeError: if the model is no ``ResNet18``.
        ValueError: if the file is of another kind or truncated, or if an entry is missing, not
            expected, of the wrong shape, not float32, not finite, or a negative variance; or if
            the model is a batch of trunks.

    Source: He et al. (2016); torchvision's ``resnet18`` for the names.

    Example:
        >>> import jax, tempfile
        >>> from perfalign_jax.har.nn import resnet
        >>> trained, new = (resnet.ResNet18(jax.random.key(seed)) for seed in (0, 1))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     resnet.save_resnet18(trained, f"{folder}/resnet18.safetensors")
        ...     resnet.load_resnet18(new, f"{folder}/resnet18.safetensors")
        >>> bool((new.conv1.kernel[...] == trained.conv1.kernel[...]).all())
        True
    """
    variables = _variables(model)
    expected = {name: _shape_in_file(variable) for name, variable in variables.items()}
    arrays = _read(Path(path), expected)
    for name, variable in variables.items():
        value = arrays[name]
        variable[...] = jnp.array(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)


def save_resnet18(model: ResNet18, path: str | os.PathLike[str]) -> None:
    """Write a trunk's weights and running statistics to a ``.safetensors`` file, under those names.

    The file appears whole or not at all, and replaces an existing one. ``load_resnet18`` reads it,
    and so does a PyTorch ResNet-18 (which has a classifier besides).

    Raises:
        FileNotFoundError, IsADirectoryError: if no file can be written there.
        TypeError: if the model is no ``ResNet18``.
        ValueError: if the path ends otherwise, or if the model is a batch of trunks.

    Example:
        >>> import jax, safetensors.numpy, tempfile
        >>> from perfalign_jax.har.nn import resnet
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = f"{folder}/resnet18.safetensors"
        ...     resnet.save_resnet18(resnet.ResNet18(jax.random.key(0)), path)
        ...     safetensors.numpy.load_file(path)["layer2.0.downsample.0.weight"].shape
        (128, 64, 1, 1)
    """
    target = serialization.check_target(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"path must end in .safetensors, got {target}.")
    arrays = {}
    for name, variable in _variables(model).items():
        value = np.asarray(variable[...])
        arrays[name] = np.ascontiguousarray(
            value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        )
    serialization.write_whole(target, safetensors.numpy.save(arrays))


def _variables(model: ResNet18) -> dict[str, nnx.Variable]:
    """Return every parameter and running statistic of a trunk, by its name in a file."""
    if not isinstance(model, ResNet18):
        raise TypeError(f"model must be a ResNet18, got {type(model).__name__}.")
    shape = model.bn1.scale.shape
    if shape != (64,):
        raise ValueError(
            f"model must be a single trunk, whose bn1.scale has shape (64,), got shape {shape}; "
            "load or save the members of a batch one by one."
        )
    return {
        ".".join([*map(str, path[:-1]), _IN_FILE[str(path[-1])]]): node
        for path, node in nnx.iter_graph(model)
        if isinstance(node, nnx.Variable)
    }


def _shape_in_file(variable: nnx.Variable) -> tuple[int, ...]:
    shape = variable.shape  # of a kernel: height, width, inputs, outputs
    return (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape


def _read(source: Path, expected: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the expected arrays of a file, all of them checked."""
    if source.suffix != ".safetensors" and not source.is_dir():
        raise ValueError(
            f"path must end in .safetensors, got {source}; safetensors.torch.save_file writes a "
            "PyTorch model's state_dict() so."
        )
    with serialization.open_safetensors(source, "a file of weights") as file:
        entries = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        kinds = {name: (e.get_dtype(), tuple(e.get_shape())) for name, e in entries.items()}
        stored = [name for name in expected if name in kinds and kinds[name][0] == "F32"]
        arrays = {name: file.get_tensor(name) for name in stored}
    missing = [name for name in expected if name not in kinds]
    if missing:
        name = missing[0]
        raise ValueError(
            f"{source} has no entry {name!r}{_more(missing)}; expected one of shape "
            f"{expected[name]} (torchvision's names of a ResNet-18)."
        )
    counters = {name.replace("running_mean", "num_batches_tracked") for name in expected}
    extra = [
        name
        for name in sorted(kinds)
        if name not in expected and name not in counters and not name.startswith("fc.")
    ]
    if extra:
        name = extra[0]
        raise ValueError(
            f"{source} has an entry {name!r} of shape {kinds[name][1]}{_more(extra)}, "
            "which a ResNet-18 does not have; expected torchvision's names."
        )
    for name, wanted in expected.items():
        dtype, shape = kinds[name]
        if shape != wanted:
            raise ValueError(f"{source}: {name!r} must have shape {wanted}, got shape {shape}.")
        if dtype != "F32":
            raise ValueError(f"{source}: {name!r} must be float32, got {dtype}.")
        bad = int(np.sum(~np.isfinite(arrays[name])))
        if bad:
            raise ValueError(
                f"{source}: {name!r} must be finite, got {bad} of {arrays[name].size} values "
                "that are NaN or infinite."
            )
        if name.endswith("running_var") and arrays[name].min() < 0:
            raise ValueError(
                f"{source}: {name!r} must not be negative, got {arrays[name].min():g}."
            )
    return arrays


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more such)" if len(names) > 1 else ""
