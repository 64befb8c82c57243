"""The dataset reader, on a made-up dataset in the real file format and on a few real files."""

import os
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import scipy.io
import scipy.sparse

from perfalign_jax.har.data import dataset, utd_mhad
from perfalign_jax.har.data.dataset import (
    crop_person,
    keep_array,
    read_recordings,
    resample,
    shrink_video,
    to_series,
)
from perfalign_jax.har.data.utd_mhad import DamagedFileError, discover, parse_name, read_clip

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


def test_what_is_no_file_is_missing(root):
    link = root / "Skeleton" / "a2_s2_t1_skeleton.mat"
    link.unlink()
    link.symlink_to(root / "nowhere")
    (root / "Depth" / "a3_s1_t1_depth.mat").mkdir()
    found = read_recordings(root, modalities=(m for m in ("inertial", "skeleton", "depth")))
    assert found.names == ("a2_s1_t1", "a10_s1_t1", "a10_s2_t1")
    assert {str(p) for p in found.problems} >= {
        "a2_s2_t1_skeleton.mat: missing",
        "a3_s1_t1_depth.mat: missing",
    }


def test_one_clip_has_one_name(root):
    source = root / "Inertial" / "a2_s1_t1_inertial.mat"
    (root / "Inertial" / "a02_s1_t1_inertial.mat").write_bytes(source.read_bytes())
    catalog = discover(root, modalities=["inertial"])
    assert len(catalog.names) == len(NAMES)
    assert [p.path.name for p in catalog.problems] == ["a02_s1_t1_inertial.mat"]


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


def write_color_video(path, frames, codec="mpeg4"):
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p" if codec == "mpeg4" else "yuvj420p"
        stream.bit_rate = 8_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def make_color_video(t):
    """A red square that moves to the right over grey, as large as the real ones."""
    video = np.full((t, 480, 640, 3), 90, np.uint8)
    for i in range(t):
        video[i, 200:300, 100 + 8 * i : 200 + 8 * i] = (220, 30, 30)
    return video


@pytest.mark.parametrize("codec", ["mpeg4", "mjpeg"])
def test_a_colour_video_is_what_was_written(tmp_path, codec):
    video = make_color_video(12)
    path = tmp_path / "RGB" / "a1_s1_t1_color.avi"
    write_color_video(path, video, codec)
    found = read_clip(path, modality="rgb")
    assert found.shape == video.shape
    assert found.dtype == np.uint8
    assert np.abs(found.astype(int) - video).mean() < 3  # the codecs lose a little
    for i in (0, 11):  # frames in their order
        red = found[i, :, :, 0].astype(int) - found[i, :, :, 1]
        assert abs(np.argwhere(red > 90)[:, 1].mean() - (149.5 + 8 * i)) < 2


def test_colour_videos_are_recordings_like_all_others(root, tmp_path):
    for name in NAMES[:3]:
        write_color_video(root / "RGB" / f"{name}_color.avi", make_color_video(20))
    (root / "RGB" / f"{NAMES[1]}_color.avi").write_bytes(b"RIFF....AVI ")
    options = {"modalities": ["inertial", "rgb"], "frames": 8, "size": 24, "cache": tmp_path / "c"}
    found = read_recordings(root, **options)
    assert found.names == ("a2_s1_t1", "a10_s1_t1")
    assert found.signals["rgb"].shape == (2, 8, 24, 24, 3)
    assert found.signals["rgb"].dtype == np.uint8
    assert {str(p).split(":")[0] for p in found.problems} == {
        "a2_s2_t1_color.avi",
        "a10_s2_t1_color.avi",
    }
    assert to_series(found.signals["rgb"], modality="rgb").shape == (2, 8, 432)
    with pytest.raises(FileNotFoundError, match=r"a10_s2_t1_color\.avi is missing"):
        read_recordings(root, **options, damaged="raise")
    write_color_video(root / "RGB" / f"{NAMES[3]}_color.avi", make_color_video(20))
    with pytest.raises(DamagedFileError, match=r"a2_s2_t1_color\.avi: no readable video"):
        read_recordings(root, **options, damaged="raise")


def test_a_colour_video_that_was_cut_short_is_damaged(tmp_path):
    path = tmp_path / "a1_s1_t1_color.avi"
    write_color_video(path, make_color_video(40))
    whole = path.read_bytes()
    for share in (0.8, 0.3):
        path.write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(DamagedFileError, match="expected 40 frames, got"):
            read_clip(path, modality="rgb")


def test_videos_are_shrunk_to_sizes_that_they_have():
    video = np.full((5, 8, 10, 3), 9, np.uint8)
    for size, frames in ((9, 2), (0, 2), (4, 0)):
        with pytest.raises(ValueError, match="must be"):
            dataset.shrink_video(video, frames=frames, size=size)
    with pytest.raises(TypeError, match="uint8"):
        dataset.shrink_video(video.astype(float), frames=2, size=4)
    with pytest.raises(ValueError, match="frames must be"):
        dataset.crop_person(video[..., 0].astype(np.uint16), frames=0, size=4)


def test_a_file_that_is_no_colour_video_is_damaged(tmp_path):
    path = tmp_path / "a1_s1_t1_color.avi"
    write_color_video(path, make_color_video(1), "mjpeg")
    with pytest.raises(DamagedFileError, match=r"expected .* frames, got 1"):
        read_clip(path, modality="rgb")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DamagedFileError, match=r"no readable video|at least 2 frames"):
        read_clip(path, modality="rgb")


def test_a_missing_video_reader_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    path = tmp_path / "a1_s1_t1_color.avi"
    path.touch()
    with pytest.raises(ImportError, match=r"pip install av"):
        read_clip(path, modality="rgb")


def test_a_clip_has_time_first(root, rng):
    assert read_clip(root / "Inertial" / "a2_s1_t1_inertial.mat", modality="inertial").shape[1] == 6
    assert read_clip(root / "Skeleton" / "a2_s1_t1_skeleton.mat", modality="skeleton").shape[
        1:
    ] == (20, 3)
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
    "sparse": ({"d_iner": scipy.sparse.csc_matrix(np.eye(6))}, "expected an array, got a csc"),
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


def draw_person(t=10, left=120, depth=2500, h=240, w=320):
    """A standing block with an arm that rises at its right, nearer than the body."""
    video = np.zeros((t, h, w), np.uint16)
    video[:, 60:200, left : left + 40] = depth
    for i in range(t):
        video[i, 150 - 8 * i : 170 - 8 * i, left + 40 : left + 80] = depth - 350
    return video


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_crop_does_not_depend_on_where_the_person_stands(order):
    here, there = (np.asarray(draw_person(left=left), order=order) for left in (60, 180))
    crop = crop_person(here, frames=5, size=48)
    assert crop.shape == (5, 48, 48)
    assert crop.dtype == np.uint8
    np.testing.assert_array_equal(crop, crop_person(there, frames=5, size=48))
    farther = crop_person(np.where(here > 0, here + 400, 0).astype(np.uint16), frames=5, size=48)
    np.testing.assert_array_equal(crop, farther)  # depth is relative to the person


def test_a_crop_holds_the_person_whole_and_says_how_near_each_part_is():
    crop = crop_person(draw_person(), frames=10, size=70)  # 140 rows: two pixels to one
    # The square is 140 wide, the person 80: 30 pixels of nothing on either side, 15 in the crop.
    assert (crop[:, :, :15] == 0).all()
    assert (crop[:, :, -15:] == 0).all()
    assert (crop[:, 1:-1, 16:34] == 128).all()  # the body at the median
    assert set(np.unique(crop[0, 46:49, 37:53])) == {round(128 + 350 * 127 / 700)}
    assert np.argwhere(crop[9, :, 45] > 0).mean() < np.argwhere(crop[0, :, 45] > 0).mean()


def test_a_crop_ignores_single_stray_pixels():
    video = draw_person()
    video[3, 5, 5] = 900
    difference = crop_person(video, frames=10, size=48) != crop_person(
        draw_person(), frames=10, size=48
    )
    assert difference.mean() < 0.01


def test_a_crop_at_the_edge_of_the_picture_is_filled_with_nothing():
    crop = crop_person(draw_person(left=0), frames=3, size=48)
    np.testing.assert_array_equal(crop, crop_person(draw_person(left=100), frames=3, size=48))


def test_a_video_without_anyone_is_refused():
    with pytest.raises(ValueError, match="sees nothing"):
        crop_person(np.zeros((3, 8, 8), np.uint16), frames=2, size=4)
    with pytest.raises(ValueError, match=r"\(T, H, W\)"):
        crop_person(np.zeros((8, 8), np.uint16), frames=2, size=4)
    with pytest.raises(ValueError, match=r"\(T, H, W, 3\)"):
        shrink_video(np.zeros((2, 8, 8), np.uint8), frames=2, size=4)


def test_a_small_colour_video_is_the_mean_of_its_blocks(rng):
    video = rng.integers(0, 256, size=(3, 12, 20, 3)).astype(np.uint8)
    middle = video[[0, 2], :, 4:16].astype(float)
    expected = middle.reshape(2, 4, 3, 4, 3, 3).mean(axis=(2, 4))
    found = shrink_video(video, frames=2, size=4)
    assert np.abs(found - expected).max() <= 0.5 + 1e-4  # rounding to integers
    assert shrink_video(video, frames=5, size=5).shape == (5, 5, 5, 3)  # no even blocks


def test_series_are_relative_to_the_body_and_in_fixed_units(rng):
    skeleton = rng.normal(size=(3, 10, 20, 3))
    moved = skeleton + rng.normal(size=(3, 1, 1, 3))
    found = to_series(skeleton, modality="skeleton")
    assert found.shape == (3, 10, 60)
    np.testing.assert_allclose(to_series(moved, modality="skeleton"), found, atol=1e-5)
    np.testing.assert_allclose(to_series(skeleton[:1], modality="skeleton"), found[:1])
    video = np.zeros((2, 5, 24, 24), np.uint8)
    video[:, :, 2:4] = 128
    series = to_series(video, modality="depth")
    assert series.dtype == np.float32
    expected = np.zeros((12, 12))
    expected[1] = 2
    np.testing.assert_array_equal(series, np.broadcast_to(expected.ravel(), (2, 5, 144)))
    with pytest.raises(ValueError, match="multiple of 12"):
        to_series(np.ones((2, 5, 20, 20), np.uint8), modality="depth")
    with pytest.raises(ValueError, match="unexpected shape"):
        to_series(np.ones((2, 5, 6)), modality="skeleton")
    with pytest.raises(ValueError, match="unexpected shape"):
        to_series(np.ones((2, 5, 24, 24, 4), np.uint8), modality="rgb")
    for bad in (np.nan, 1e39):  # too large for float32
        with pytest.raises(ValueError, match="signal must be finite, but row 1"):
            to_series(np.array([1.0, bad])[:, None, None] * np.ones((2, 5, 6)), modality="inertial")
    with pytest.raises(TypeError, match="real numbers, got dtype complex128"):
        to_series(np.ones((2, 5, 6), complex), modality="inertial")


# The whole dataset.


def test_recordings_are_paired_and_of_fixed_length(root):
    found = read_recordings(root, length=40, frames=12)
    assert found.signals["inertial"].shape == (4, 40, 6)
    assert found.signals["skeleton"].shape == (4, 40, 20, 3)
    assert found.signals["depth"].shape == (4, 12, 48, 48)
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


def test_a_video_without_anyone_is_reported_as_damaged(root):
    path = root / "Depth" / "a2_s2_t1_depth.mat"
    scipy.io.savemat(path, {"d_depth": np.zeros((100, 100, 9), np.uint16)})
    found = read_recordings(root)
    assert "a2_s2_t1" not in found.names
    assert "sees nothing" in str(found.problems[0])
    with pytest.raises(DamagedFileError, match=r"a2_s2_t1_depth\.mat: video sees nothing"):
        read_recordings(root, damaged="raise")


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
    for x in (*first.signals.values(), *second.signals.values()):
        assert x.flags.c_contiguous  # whatever order the files are in
    assert len(reads) == 4
    np.testing.assert_array_equal(first.signals["depth"], second.signals["depth"])


def test_other_settings_and_other_sources_are_never_read_from_the_cache(root, tmp_path, reads, rng):
    options = {"modalities": ["depth"], "cache": tmp_path / "cache"}
    read_recordings(root, **options)
    assert read_recordings(root, frames=9, **options).signals["depth"].shape[1] == 9
    assert read_recordings(root, size=5, **options).signals["depth"].shape[2:] == (5, 5)
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
        crop = crop_person(clips["depth"], frames=8, size=48)
        # The person fills the square from top to bottom, and most of it is body at its median.
        assert (crop.max(axis=(0, 2)) > 0).all()
        assert 0.1 < (crop > 0).mean() < 0.7
        assert 100 < np.median(crop[crop > 0]) < 160
        for modality in ("inertial", "skeleton"):
            series = to_series(clips[modality][None], modality=modality)
            assert 0.1 < series.std() < 10  # values around one, as random kernels expect
