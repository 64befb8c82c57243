"""``perfalign fit`` and ``align`` by processes that each read rows of their own."""

import json
import socket
import subprocess
import sys

import numpy as np
import pytest

import perfalign_jax as pa
from perfalign_jax.cli import main


def start(*words):
    command = [sys.executable, "-m", "perfalign_jax", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def shards(tmp_path, rng):
    """Two views in two parts."""
    z = rng.normal(size=(300, 3))
    views = [np.float32(2 + z @ rng.normal(size=(3, d))) for d in (5, 4)]
    for number, rows in enumerate((slice(0, 200), slice(200, 300))):
        for m, x in enumerate(views):
            np.save(tmp_path / f"{number}-x{m + 1}.npy", x[rows])
    return views


def run_both(tmp_path, command, *options):
    port = free_port()
    running = [
        start(
            command,
            *(tmp_path / f"{number}-x{m}.npy" for m in (1, 2)),
            "--hosts",
            f"127.0.0.1:{port},2,{number}",
            "--out",
            tmp_path / "a.safetensors",
            "--json",
            *(str(option).replace("{}", str(number)) for option in options),
        )
        for number in (0, 1)
    ]
    return [(*process.communicate(timeout=240), process.returncode) for process in running]


def test_a_fit_by_two_processes_is_that_of_all_rows(shards, tmp_path):
    (first, errors, code), (second, more, other) = run_both(tmp_path, "fit", "-k", "3")
    assert (code, other) == (0, 0), errors + more
    assert [json.loads(said)["n"] for said in (first, second)] == [300, 300]
    found, expected = pa.load(tmp_path / "a.safetensors"), pa.fit(shards, k=3, check=False)
    a, b = (np.concatenate(one.projections, axis=1) for one in (found, expected))
    # Null directions of float32 data, in a null space of six: what is left over is rounding.
    x = np.hstack([shards[0], -shards[1]])
    size = np.linalg.norm(x, 2)
    assert np.linalg.norm(x @ a.T, 2) < 1e-5 * size
    assert np.linalg.norm(x @ b.T, 2) < 1e-5 * size


@pytest.mark.slow
def test_a_process_that_fails_is_an_error_for_the_other(shards, tmp_path):
    spoilt = np.load(tmp_path / "1-x2.npy")
    spoilt[7, 1] = np.nan
    np.save(tmp_path / "1-x2.npy", spoilt)
    kept = tmp_path / "state-{}.safetensors"
    (_, errors, code), (_, more, other) = run_both(
        tmp_path, "align", "--wait", "8", "--lift", "none", "--checkpoint", kept
    )
    assert (code, other) == (2, 2)
    assert "row 7 has NaN" in more
    assert "process 0 of 2" in errors
    assert f"kept in {tmp_path / 'state-0.safetensors'}" in errors
    assert not (tmp_path / "a.safetensors").exists()


def test_who_waits_in_vain_is_told(shards, tmp_path):
    address = f"127.0.0.1:{free_port()},2,0"
    process = start(
        "fit",
        tmp_path / "0-x1.npy",
        tmp_path / "0-x2.npy",
        "-k",
        2,
        "--hosts",
        address,
        "--wait",
        2,
    )
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert errors.splitlines()[-1] == (
        f"perfalign: error: the other processes of --hosts {address} did not come within 2 s."
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hosts", "somewhere,2,0"], "--hosts must be auto or ADDRESS:PORT,COUNT,NUMBER"),
        (["--hosts", "a:1,2,2"], "with a number below the count"),
        (["--hosts", "a:1,2,0", "--wait", "0"], "--wait must be between 0 and a million"),
    ],
)
def test_bad_places_are_one_line(options, said, shards, tmp_path, capsys):
    files = [str(tmp_path / f"0-x{m}.npy") for m in (1, 2)]
    assert main(["fit", *files, "-k", "2", "--out", str(tmp_path / "a.safetensors"), *options]) == 2
    assert said in capsys.readouterr().err
