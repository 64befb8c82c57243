"""The dataset reader, on a made-up dataset in the real file format and on a few real files."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from perfalign_jax.har import dataset, utd_mhad
from perfalign_jax.har.dataset import keep_array, read_recordings, resample, shrink_video, to_series
from perfalign_jax.har.utd_mhad import DamagedFileError, discover, parse_name, read_clip

REAL = os.environ.get("UTD_MHAD_ROOT")
real_files = pytest.mark.skipif(not REAL, reason="UTD_MHAD_ROOT is not set: no real files here")
NAMES = [f"a{a}_s{s}_t1" for a in (2, 10) for s in (1, 2)]


def make_clip(root, name, rng, modalities=("inertial", "skeleton", "depth")):
    t = int(rng.integers(20, 30))
    contents = {
        "inertial": ("Inertial", "d_iner", rng.normal(size=(2 * t, 6))),
        "skeleton": ("Skeleton", "d_skel", rng.normal(size=(20, 3, t))),
        "depth": ("Depth", "d_depth", make_video(rng, t).transpose(1, 2, 0)),
    }
    for modality in modalities:
        folder, variable, value = contents[modality]
        (root / folder).mkdir(exist_ok=True, parents=True)
        path = root / folder / f"{name}_{modality}.mat"
        scipy.io.savemat(path, {variable: value}, do_compression=True)


def make_video(rng, t):
    video = np.zeros((t, 240, 320), np.uint16)
    video[:, 60:180, 100:200] = rng.integers(1000, 4000, size=(t, 1, 1))
    return video


@pytest.fixture
def root(tmp_path, rng):
    for name in NAMES:
        make_clip(tmp_path / "data", name, rng)
    return tmp_path / "data"


# Discovery.


def test_names_are_in_the_order_of_their_numbers(root):
    assert discover(root).names == ("a2_s1_t1", "a2_s2_t1", "a10_s1_t1", "a10_s2_t1")
    assert parse_name("a10_s2_t3") == (10, 2, 3)


def test_files_are_paired_by_name(root):
    catalog = discover(root)
    for paths in catalog.files.values():
        assert [p.name.rsplit("_", 1)[0] for p in paths] == list(catalog.names)
    assert catalog.problems == ()
    assert catalog.available == ("inertial", "skeleton", "depth")


def test_a_missing_file_drops_its_clip_and_is_named(root):
    (root / "Skeleton" / "a2_s2_t1_skeleton.mat").unlink()
    catalog = discover(root)
    assert "a2_s2_t1" not in catalog.names
    assert [str(p) for p in catalog.problems] == ["a2_s2_t1_skeleton.mat: missing"]
    assert "a2_s2_t1" in discover(root, modalities=["inertial", "depth"]).names


def test_a_strange_name_is_reported_and_other_files_are_not(root):
    (root / "Depth" / "b1_depth.mat").touch()
    (root / "Depth" / "notes.txt").touch()
    catalog = discover(root)
    assert catalog.names == discover(root, modalities=["inertial"]).names
    assert [p.path.name for p in catalog.problems] == ["b1_depth.mat"]
    assert "a<action>_s<subject>_t<trial>_depth.mat" in str(catalog.problems[0])


def test_colour_videos_are_recognised_where_they_are(root):
    (root / "RGB").mkdir()
    (root / "RGB" / "a2_s1_t1_color.avi").touch()
    assert "rgb" in discover(root).available
    catalog = discover(root, modalities=["inertial", "rgb"])
    assert catalog.names == ("a2_s1_t1",)
    with pytest.raises(ValueError, match="use 'depth'"):
        read_recordings(root, modalities=["inertial", "rgb"])


def test_errors_about_the_whole_dataset_say_what_was_expected(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        discover(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"expected Inertial/\*_inertial.mat.*no modality"):
        discover(tmp_path)
    with pytest.raises(ValueError, match="one of 'inertial'"):
        discover(root, modalities=["sound"])
    with pytest.raises(ValueError, match="at least one"):
        discover(root, modalities=[])
    for path in (root / "Depth").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"Depth/a1_s1_t1_depth\.mat"):
        discover(root)
    with pytest.raises(ValueError, match="a<action>"):
        parse_name("a1_s1")


# One file.


def test_a_clip_has_time_first(root, rng):
    assert read_clip(root / "Inertial" / "a2_s1_t1_inertial.mat", modality="inertial").shape[1] == 6
    assert read_clip(root / "Skeleton" / "a2_s1_t1_skeleton.mat", modality="skeleton").shape[
        1:
    ] == (
        20,
        3,
    )
    video = make_video(rng, 7)
    path = root / "x.mat"
    scipy.io.savemat(path, {"d_depth": video.transpose(1, 2, 0)})
    found = read_clip(path, modality="depth")
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, video)


BROKEN = {
    "empty": (b"", "no readable MATLAB file"),
    "text": (b"not a matlab file " * 20, "no readable MATLAB file"),
    "newer format": (
        b"MATLAB 7.3 MAT-file".ljust(124) + struct.pack("<H", 0x0200) + b"IM" + bytes(512),
        "MATLAB 7.3",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_bytes_that_are_no_recording_are_one_clear_error(tmp_path, kind):
    path = tmp_path / "a1_s1_t1_inertial.mat"
    path.write_bytes(BROKEN[kind][0])
    with pytest.raises(DamagedFileError, match=BROKEN[kind][1]) as caught:
        read_clip(path, modality="inertial")
    assert path.name in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("keep", [1, 100, 128, 130, 200, -200, -10, -1])
def test_a_truncated_file_is_damaged_wherever_it_ends(root, keep):
    path = root / "Depth" / "a2_s1_t1_depth.mat"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DamagedFileError):
        read_clip(path, modality="depth")


@pytest.mark.parametrize("place", [0.3, 0.5, 0.9])
def test_a_changed_byte_of_compressed_data_is_noticed(root, place):
    path = root / "Inertial" / "a2_s1_t1_inertial.mat"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(DamagedFileError):
        read_clip(path, modality="inertial")


WRONG = {
    "another variable": ({"data": np.ones((9, 6))}, "no variable 'd_iner'"),
    "another shape": ({"d_iner": np.ones((9, 5))}, r"expected shape \(T, 6\), got \(9, 5\)"),
    "text": ({"d_iner": np.array([["a"] * 6] * 9)}, "expected"),
    "one frame": ({"d_iner": np.ones((1, 6))}, "at least 2 frames"),
    "nothing": ({"d_iner": np.ones((0, 6))}, "at least 2 frames|no readable|expected"),
    "not a number": ({"d_iner": np.full((9, 6), np.nan)}, "NaN or infinity"),
    "complex": ({"d_iner": np.ones((9, 6)) * 1j}, "expected numbers"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_file_with_other_content_says_what_was_expected(tmp_path, kind):
    path = tmp_path / "a1_s1_t1_inertial.mat"
    scipy.io.savemat(path, WRONG[kind][0])
    with pytest.raises(DamagedFileError, match=WRONG[kind][1]):
        read_clip(path, modality="inertial")


def test_no_file_is_no_damaged_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        read_clip(tmp_path / "a1_s1_t1_inertial.mat", modality="inertial")


# Fixed length, small videos, units.


def test_resampling_agrees_with_numpy_interpolation(rng):
    signal = rng.normal(size=(37, 4))
    when = np.linspace(0, 36, 50)
    expected = np.stack([np.interp(when, np.arange(37), column) for column in signal.T], axis=1)
    # Two ways to write the same line: a few roundings apart.
    np.testing.assert_allclose(resample(signal, length=50), expected, atol=1e-14)


@pytest.mark.parametrize("length", [2, 5, 37, 100])
def test_resampling_keeps_lines_and_both_ends(rng, length):
    line = np.linspace(3.0, -1.0, 37)[:, None, None] * rng.normal(size=(1, 2, 3))
    found = resample(line, length=length)
    np.testing.assert_allclose(found, np.linspace(line[0], line[-1], length), atol=1e-14)
    assert found.flags.c_contiguous
    assert resample(line.astype(np.float32), length=length).dtype == np.float32


def test_resampling_to_the_same_length_changes_nothing(rng):
    signal = rng.normal(size=(12, 3))
    np.testing.assert_allclose(resample(signal, length=12), signal, atol=1e-15)


def test_resampling_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="at least 2 frames"):
        resample(np.ones((1, 3)), length=5)
    with pytest.raises(ValueError, match="length must be at least 2"):
        resample(np.ones((3, 3)), length=1)
    with pytest.raises(TypeError, match="floating-point"):
        resample(np.ones((3, 3), np.int32), length=5)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_small_video_is_the_mean_of_its_blocks_in_metres(rng, order):
    video = np.asarray(rng.integers(0, 65536, size=(3, 12, 20)), np.uint16, order=order)
    blocks = [[video[:, i : i + 4, j : j + 5] for j in (0, 5, 10, 15)] for i in (0, 4, 8)]
    expected = np.array([[b.astype(float).mean(axis=(1, 2)) for b in row] for row in blocks])
    found = shrink_video(video, height=3, width=4)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.transpose(2, 0, 1) / 1000, rtol=1e-6)  # float32


def test_a_video_that_has_no_such_blocks_is_refused():
    with pytest.raises(ValueError, match="7 x 20 equal blocks"):
        shrink_video(np.zeros((2, 240, 320), np.uint16), height=7, width=20)


def test_series_are_relative_to_the_body_and_in_fixed_units(rng):
    skeleton = rng.normal(size=(3, 10, 20, 3))
    moved = skeleton + rng.normal(size=(3, 1, 1, 3))
    found = to_series(skeleton, modality="skeleton")
    assert found.shape == (3, 10, 60)
    np.testing.assert_allclose(to_series(moved, modality="skeleton"), found, atol=1e-12)
    np.testing.assert_allclose(to_series(skeleton[:1], modality="skeleton"), found[:1])
    assert to_series(np.ones((2, 5, 3, 4), np.float32), modality="depth").dtype == np.float32
    assert to_series(np.ones((2, 5, 3, 4)), modality="depth").shape == (2, 5, 12)
    with pytest.raises(ValueError, match="unexpected shape"):
        to_series(np.ones((2, 5, 6)), modality="skeleton")


# The whole dataset.


def test_recordings_are_paired_and_of_fixed_length(root):
    found = read_recordings(root, length=40, frames=12)
    assert found.signals["inertial"].shape == (4, 40, 6)
    assert found.signals["skeleton"].shape == (4, 40, 20, 3)
    assert found.signals["depth"].shape == (4, 12, 15, 20)
    assert found.actions.tolist() == [2, 2, 10, 10]
    assert found.subjects.tolist() == [1, 2, 1, 2]
    clip = read_clip(root / "Inertial" / "a10_s1_t1_inertial.mat", modality="inertial")
    np.testing.assert_array_equal(found.signals["inertial"][2], resample(clip, length=40))


def test_a_damaged_file_drops_its_clip_everywhere_and_is_named(root):
    path = root / "Depth" / "a2_s2_t1_depth.mat"
    path.write_bytes(path.read_bytes()[:500])
    (root / "Inertial" / "a10_s2_t1_inertial.mat").unlink()
    found = read_recordings(root)
    assert found.names == ("a2_s1_t1", "a10_s1_t1")
    assert {len(signal) for signal in found.signals.values()} == {2}
    assert [str(p).split(":")[0] for p in found.problems] == [
        "a2_s2_t1_depth.mat",
        "a10_s2_t1_inertial.mat",
    ]
    assert "damaged" in found.problems[0].reason
    assert str(root) not in found.problems[0].reason


def test_a_video_of_another_size_is_reported_as_damaged(root):
    path = root / "Depth" / "a2_s2_t1_depth.mat"
    scipy.io.savemat(path, {"d_depth": np.ones((100, 100, 9), np.uint16)})
    found = read_recordings(root)
    assert "a2_s2_t1" not in found.names
    assert "cannot be cut into 15 x 20" in str(found.problems[0])


def test_no_readable_clip_is_an_error(root):
    for path in (root / "Depth").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"no clip of .* could be read; the first problem is"):
        read_recordings(root)


@pytest.fixture
def reads(monkeypatch):
    """Names of the depth files that are read, in a list that grows."""
    seen = []

    def counting(path, *, modality):
        if modality == "depth":
            seen.append(Path(path).name)
        return utd_mhad.read_clip(path, modality=modality)

    monkeypatch.setattr(dataset, "read_clip", counting)
    return seen


def test_small_videos_come_from_the_cache_the_second_time(root, tmp_path, reads):
    first = read_recordings(root, cache=tmp_path / "cache")
    assert len(reads) == 4
    second = read_recordings(root, cache=tmp_path / "cache")
    assert len(reads) == 4
    np.testing.assert_array_equal(first.signals["depth"], second.signals["depth"])


def test_other_settings_and_other_sources_are_never_read_from_the_cache(root, tmp_path, reads, rng):
    options = {"modalities": ["depth"], "cache": tmp_path / "cache"}
    read_recordings(root, **options)
    assert read_recordings(root, frames=9, **options).signals["depth"].shape[1] == 9
    assert read_recordings(root, size=(5, 4), **options).signals["depth"].shape[2:] == (5, 4)
    assert len(reads) == 12
    make_clip(root, NAMES[0], rng, modalities=["depth"])  # the file is replaced
    fresh = read_recordings(root, **options)
    assert reads[12:] == [f"{NAMES[0]}_depth.mat"]
    np.testing.assert_array_equal(
        fresh.signals["depth"], read_recordings(root, modalities=["depth"]).signals["depth"]
    )


def test_an_interrupted_run_goes_on_where_it_stopped(root, tmp_path, reads, monkeypatch):
    original = dataset.read_clip

    def interrupted(path, *, modality):
        if len(reads) == 2:
            raise KeyboardInterrupt
        return original(path, modality=modality)

    monkeypatch.setattr(dataset, "read_clip", interrupted)
    options = {"modalities": ["depth"], "cache": tmp_path / "cache", "workers": 1}
    with pytest.raises(KeyboardInterrupt):
        read_recordings(root, **options)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    monkeypatch.setattr(dataset, "read_clip", original)
    read_recordings(root, **options)
    assert sorted(reads) == sorted(f"{name}_depth.mat" for name in NAMES)


def test_a_kept_array_is_whole_or_not_there(tmp_path):
    def fails():
        raise RuntimeError

    with pytest.raises(RuntimeError):
        keep_array(tmp_path, "x", 1, fails)
    assert list(tmp_path.iterdir()) == []
    kept = keep_array(tmp_path, "x", 1, lambda: np.arange(5))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])  # damaged by something else: made again
    np.testing.assert_array_equal(keep_array(tmp_path, "x", 1, lambda: np.arange(5)), kept)
    np.testing.assert_array_equal(keep_array(tmp_path, "x", 1, fails), kept)
    assert keep_array(None, "x", 1, lambda: np.ones(1)).tolist() == [1]


# A few of the real files.


@real_files
def test_the_real_dataset_is_found_whole():
    catalog = discover(REAL)
    assert len(catalog.names) == 861
    numbers = np.array([parse_name(name) for name in catalog.names])
    assert set(numbers[:, 0]) == set(range(1, 28))
    assert set(numbers[:, 1]) == set(range(1, 9))
    assert catalog.problems == ()


@real_files
def test_real_clips_look_as_documented():
    catalog = discover(REAL)
    for index in (0, 430, 860):
        clips = {m: read_clip(paths[index], modality=m) for m, paths in catalog.files.items()}
        assert clips["inertial"].shape[1] == 6
        assert 107 <= len(clips["inertial"]) <= 326
        assert clips["skeleton"].shape[1:] == (20, 3)
        assert 41 <= len(clips["skeleton"]) <= 125
        assert clips["depth"].shape[1:] == (240, 320)
        assert clips["depth"].dtype == np.uint16
        # Gravity: the sensor's mean acceleration is about 1 g long, bar the movement itself.
        assert 0.3 < np.linalg.norm(clips["inertial"][:, :3].mean(axis=0)) < 1.7
        small = shrink_video(clips["depth"], height=15, width=20)
        np.testing.assert_allclose(small.mean(), clips["depth"].mean() / 1000, rtol=1e-4)
        for modality in ("inertial", "skeleton"):
            series = to_series(clips[modality][None], modality=modality)
            assert 0.1 < series.std() < 10  # values around one, as random kernels expect
