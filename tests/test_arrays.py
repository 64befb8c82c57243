"""Arrays in files: found by their headers, read some rows at a time, and refused with a reason."""

import zipfile

import numpy as np
import pytest
import safetensors.numpy
from safetensors.numpy import save_file

import perfalign_jax as pa
from perfalign_jax import arrays, streaming
from perfalign_jax.arrays import RowReader, open_array


def test_every_kind(tmp_path):
    a, b = np.arange(6.0).reshape(3, 2), np.ones((3, 1))
    np.save(tmp_path / "a.npy", a)
    np.savez(tmp_path / "one.npz", a)
    np.savez(tmp_path / "two.npz", a=a, b=b)
    safetensors.numpy.save_file({"a": a, "b": b}, tmp_path / "two.safetensors")
    assert open_array(tmp_path / "a.npy").dtype == np.float64
    for spec in ("a.npy", "one.npz", "two.npz:a", "two.safetensors:a"):
        file = open_array(tmp_path / spec)
        assert file.shape == (3, 2)
        np.testing.assert_array_equal(file.rows(), a)
        np.testing.assert_array_equal(file.rows(1, 2), a[1:2])
    np.save(tmp_path / "odd.npz:name.npy", a)  # a colon that belongs to the file's name
    np.testing.assert_array_equal(open_array(tmp_path / "odd.npz:name.npy").rows(), a)


@pytest.mark.parametrize("kind", ["npy", "npz", "safetensors"])
def test_a_last_block_may_be_short(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(arrays, "_BLOCK", 1)
    x = np.arange(50.0).reshape(25, 2)
    path = tmp_path / f"x.{kind}"
    write = {"npy": np.save, "npz": np.savez, "safetensors": lambda p, a: save_file({"a": a}, p)}
    write[kind](path, x)
    reader = RowReader(str(path))
    blocks = [block for (block,) in reader.blocks()]
    assert [len(block) for block in blocks] == [4] * 6 + [1]
    np.testing.assert_array_equal(np.concatenate(blocks), x)
    assert reader.files[0].rows(30, 40).shape == (0, 2)
    none = tmp_path / f"none.{kind}"
    write[kind](none, x[:0])
    assert open_array(none).rows().shape == (0, 2)


def test_what_cannot_be_read(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.ones(2), b=np.ones(3))
    np.save(tmp_path / "a.npy", np.ones((50, 50)))
    np.save(tmp_path / "o.npy", np.array([{}, []], dtype=object), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:500])
    (tmp_path / "cut.npz").write_bytes((tmp_path / "two.npz").read_bytes()[:100])
    (tmp_path / "text.npy").write_text("1,2,3")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    (tmp_path / "a.csv").write_text("1,2,3")
    (tmp_path / "folder.npy").mkdir()
    for spec, error, match in [
        ("none.npy", FileNotFoundError, "there is no file"),
        ("folder.npy", IsADirectoryError, "is a folder"),
        ("a.csv", ValueError, r"must be one of .npy, .npz, .safetensors, got .csv suffix"),
        ("two.npz", KeyError, r"holds 2 arrays; name one as .*:NAME \(of a, b\)"),
        ("two.npz:c", KeyError, r"has no array 'c'; it has a, b"),
        ("a.npy:x", KeyError, r"holds one array without a name"),
        ("o.npy", TypeError, "holds Python objects"),
        ("cut.npy", ValueError, "no readable .npy file"),
        ("cut.npz", ValueError, "no readable .npz file"),
        ("text.npy", ValueError, "no readable .npy file"),
        ("empty.npy", ValueError, "no readable .npy file"),
        ("empty.safetensors", ValueError, "no readable .safetensors file"),
    ]:
        with pytest.raises(error, match=match):
            open_array(tmp_path / spec)


def test_nobody_is_advised_to_load_unsafely(tmp_path):
    (tmp_path / "text.npy").write_text("1,2,3")
    header = b"\x93NUMPY\x02\x00" + (20_000).to_bytes(4, "little")
    (tmp_path / "long.npy").write_bytes(header + b" " * 20_000)
    with zipfile.ZipFile(tmp_path / "text.npz", "w") as archive:
        archive.writestr("x.npy", "1,2,3")
    for name in ("text.npy", "long.npy", "text.npz"):
        with pytest.raises(ValueError, match="is no readable") as found:
            open_array(tmp_path / name)
        assert "pickle" not in str(found.value)


def test_a_small_file_that_unpacks_to_a_large_array_is_refused_before(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "zeros.npz", x=np.zeros((1000, 1000)))
    np.savez(tmp_path / "stored.npz", x=np.zeros((1000, 1000)))
    assert (tmp_path / "zeros.npz").stat().st_size < 20_000
    monkeypatch.setattr(arrays, "_MOST_UNPACKED", 2**22)
    with pytest.raises(ValueError, match=r"would unpack to 7.6 MiB in memory, the limit is 4 MiB"):
        open_array(tmp_path / "zeros.npz")
    assert open_array(tmp_path / "stored.npz").shape == (1000, 1000)


def test_headers_that_lie_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 2)))
    lie = (tmp_path / "x.npy").read_bytes().replace(b"(3, 2)", b"(9, 2)")
    (tmp_path / "lie.npy").write_bytes(lie)
    with zipfile.ZipFile(tmp_path / "lie.npz", "w") as archive:
        archive.writestr("x.npy", lie)
    for name in ("lie.npy", "lie.npz"):
        with pytest.raises(ValueError, match="is no readable"):
            open_array(tmp_path / name)


class TestRowReader:
    @pytest.fixture
    def long(self, tmp_path, rng, monkeypatch):
        """Views that are read in nine blocks of 22 rows or fewer, with a common mean."""
        monkeypatch.setattr(arrays, "_BLOCK", 1000)
        x1, x2 = rng.normal(size=(190, 6)) + 3, rng.normal(size=(190, 5))
        specs = [str(tmp_path / f"x{m}.npy") for m in (1, 2)]
        for spec, x in zip(specs, (x1, x2), strict=True):
            np.save(spec, x)
        return specs, (x1, x2)

    def test_blocks_are_the_rows(self, long, x64):
        specs, views = long
        reader = RowReader(*specs)
        blocks = list(reader.blocks(""))
        assert [b.shape[0] for b, _ in blocks] == [22] * 8 + [14]
        for m, x in enumerate(views):
            np.testing.assert_array_equal(np.concatenate([b[m] for b in blocks]), x)

    def test_moments_are_those_of_all_rows(self, long, x64):
        specs, views = long
        moments = arrays.measure_moments(streaming.from_files(specs))
        for m, x in enumerate(views):
            np.testing.assert_allclose(moments[m].mean, x.mean(axis=0), atol=1e-14)
            _, unit, common, spread = moments[m]
            energy = np.sum((x - x.mean(axis=0)) ** 2)
            assert spread * unit**2 == pytest.approx(energy, rel=1e-13)
            share = 190 * np.sum(x.mean(axis=0) ** 2) / np.sum(x**2)
            assert common / (common + spread) == pytest.approx(share, rel=1e-12)

    @pytest.mark.parametrize("scale", [1e-200, 1e200, 1.7e307])
    def test_no_square_overflows(self, scale, rng, x64):
        x = scale * rng.uniform(-1, 1, size=(50, 3))
        with np.errstate(over="raise"):
            moments = arrays.measure_moments(pa.statistics.from_views((x, x), kind="samples"))
        assert 0 < moments[0].spread < 50 * 3 * 16

    def test_a_wide_matrix_is_never_cut(self, tmp_path, monkeypatch, x64):
        monkeypatch.setattr(arrays, "_BLOCK", 1)
        np.save(tmp_path / "wide.npy", np.ones((80, 10)))
        np.save(tmp_path / "long.npy", np.ones((81, 10)))
        assert not RowReader(str(tmp_path / "wide.npy")).in_blocks
        assert RowReader(str(tmp_path / "long.npy")).in_blocks

    @pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (-np.inf, "infinity")])
    def test_rows_that_are_not_finite_are_counted_from_the_first(self, value, word, long, x64):
        specs, (_, x2) = long
        x2[150, 3] = x2[181, :2] = value
        np.save(specs[1], x2)
        message = rf"x2.npy must be finite, but row 150 has {word} \(3 such values in all\)"
        with pytest.raises(ValueError, match=message):
            list(RowReader(*specs).blocks(""))

    def test_numbers_of_rows_are_compared_before_any_value_is_read(self, long, monkeypatch, x64):
        specs, (_, x2) = long
        np.save(specs[1], x2[:-1])
        monkeypatch.setattr(arrays.ArrayFile, "rows", lambda *_: pytest.fail("values were read"))
        with pytest.raises(ValueError, match=r"same number of rows .* got 190 and 189"):
            RowReader(*specs)
