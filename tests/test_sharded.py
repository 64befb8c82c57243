"""Rows over devices and processes: the statistic of one device, and errors instead of hangs."""

import socket
import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytest

import perfalign_jax as pa
from perfalign_jax import sharded

CONNECT = """
    import os, sys, hashlib, jax
    jax.config.update("jax_enable_x64", True)
    me, count, port = (int(word) for word in sys.argv[1:])
    jax.distributed.initialize(
        f"127.0.0.1:{port}", count, me, initialization_timeout=60, heartbeat_timeout_seconds=60
    )
    import numpy as np, perfalign_jax as pa
    rng = np.random.default_rng(me)
    x = [3 + rng.normal(size=(40 - 35 * me, d)) for d in (3, 4)]  # the second has few rows
    state = pa.statistics.from_views(x)
"""


def run_apart(script, *arguments):
    code = textwrap.dedent(script)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run_processes(script, count=2):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = textwrap.dedent(CONNECT) + textwrap.dedent(script)
    running = [run_apart(code, me, count, port) for me in range(count)]
    return [(*process.communicate(timeout=180), process.returncode) for process in running]


def test_eight_devices_give_the_statistic_of_one():
    """In a process of its own: the number of (CPU) devices is fixed at the start."""
    script = """
        import jax
        jax.config.update("jax_num_cpu_devices", 8)
        jax.config.update("jax_enable_x64", True)
        import numpy as np, perfalign_jax as pa
        rng = np.random.default_rng(0)
        mesh = jax.make_mesh((8,), ("rows",))

        def same(found, expected):
            assert found.samples == expected.samples
            assert np.allclose(found.weight, expected.weight, rtol=1e-14)
            for center in (False, True):
                pairs = zip(*(pa.statistics.rows(s, center=center).blocks
                              for s in (found, expected)), strict=True)
                for a, b in pairs:
                    assert np.allclose(a.T @ a, b.T @ b, rtol=1e-12, atol=1e-12 * np.sum(b**2))

        for n, kind, weighted in ((43, "factor", True), (5, "factor", False), (48, "gram", False)):
            x1 = 3 + rng.normal(size=(n, 3))
            x2 = np.hstack([x1, rng.normal(size=(n, 1))]) @ rng.normal(size=(4, 4))
            options = dict(weights=rng.uniform(0, 2, n) if weighted else None, kind=kind)
            found = pa.sharded.from_views((x1, x2), mesh=mesh, **options)
            same(found, pa.statistics.from_views((x1, x2), **options))

        rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("rows"))
        on_mesh = jax.device_put((x1, x2), rows)
        alignment = pa.fit(pa.sharded.from_views(on_mesh, mesh=mesh), k=3, check=False)
        assert alignment.singular_values.max() < 1e-13, alignment
        x1[17, 1] = np.nan
        try:
            pa.sharded.from_views((x1, x2), mesh=mesh)
        except ValueError as error:
            assert "x1 must be finite, but row 17" in str(error), error
        else:
            raise AssertionError
    """
    process = run_apart(script)
    _, errors = process.communicate(timeout=180)
    assert process.returncode == 0, errors


def test_processes_end_with_the_same_bits_of_all_rows(x64):
    script = """
        whole, folds = pa.sharded.merge_hosts(state), pa.sharded.merge_hosts([state, state])
        digest = hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in jax.tree.leaves(whole)))
        assert [fold.samples for fold in folds] == [45, 45]
        print(whole.samples, float(np.sum(np.concatenate(whole.blocks, axis=1) ** 2)),
              digest.hexdigest())
        try:
            pa.sharded.merge_hosts(pa.statistics.init((3, 4 + me)))
        except ValueError as error:
            assert "like statistics" in str(error), error
        else:
            raise AssertionError
    """
    (first, errors, code), (second, more, other) = run_processes(script)
    assert (code, other) == (0, 0), errors + more
    first, second = (said.splitlines()[-1] for said in (first, second))  # below what Gloo says
    assert first == second
    samples, energy, _ = first.split()
    views = [
        [3 + rng.normal(size=(40 - 35 * me, d)) for d in (3, 4)]
        for me, rng in ((me, np.random.default_rng(me)) for me in (0, 1))
    ]
    joined = np.vstack([np.hstack(pair) for pair in views])
    assert int(samples) == 45
    assert float(energy) == pytest.approx(np.sum((joined - joined.mean(axis=0)) ** 2), rel=1e-12)


@pytest.mark.slow
def test_a_process_that_dies_is_an_error_within_the_time_given():
    script = """
        if me:
            os._exit(1)
        try:
            pa.sharded.merge_hosts(state, timeout=3)
        except (TimeoutError, ConnectionError) as error:
            print(error, flush=True)
            os._exit(5)
    """
    (said, errors, code), _ = run_processes(script)
    assert code == 5, errors
    assert "process 0 of 2" in said


def test_bad_input_is_refused(rng):
    mesh = jax.make_mesh((1,), ("rows",))
    x = rng.normal(size=(6, 2)).astype(np.float32)
    with pytest.raises(TypeError, match=r"mesh must be a jax.sharding.Mesh, got int"):
        sharded.from_views((x, x), mesh=8)
    with pytest.raises(ValueError, match="same number of rows"):
        sharded.from_views((x, x[1:]), mesh=mesh)
    with pytest.raises(ValueError, match="at least one row"):
        sharded.from_views((x[:0], x[:0]), mesh=mesh)
    with pytest.raises(ValueError, match="weight 0 is"):
        sharded.from_views((x, x), mesh=mesh, weights=-np.ones(6, np.float32))
    with pytest.raises(ValueError, match="kind must be one of"):
        sharded.from_views((x, x), mesh=mesh, kind="samples")
    for state in ((x, x), [], pa.fit((x, x), k=1, check=False)):
        with pytest.raises(TypeError, match="state must be a Factor or a Gram"):
            sharded.merge_hosts(state)
    with pytest.raises(ValueError, match="timeout must be above zero"):
        sharded.merge_hosts(pa.statistics.init((2, 2)), timeout=0)


def test_without_other_processes_what_came_goes_back(rng):
    state = pa.statistics.from_views((rng.normal(size=(6, 2)).astype(np.float32),) * 2)
    assert sharded.merge_hosts(state) is state
