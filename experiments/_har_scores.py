"""Every method of Table 1 on one training: ranked classes, hit or miss clip by clip."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import threadpoolctl
from _har_data import (
    TARGET,
    Encoded,
    HarData,
    HarOptions,
    Job,
    make_branches,
    pose_latents,
    train_and_encode,
)

from perfalign_jax.har import contrastive, features, methods, transfer

TOPS = (1, 3, 5, 7)
CA = "CA"
KEPT = ", lengths kept"
LIFTED, JOINED = "random convolutions + PA", "CA beside random convolutions + PA"
BOUND, PSEUDO = "supervised bound, random convolutions", "pseudo-labels, random convolutions"
RAW, MLP, REVERSE = "raw signals + PA", ", MLP decoder", "from IMU: "


def name_of_papers(latent: int) -> str:
    """The method of the paper: every latent dimension, the trailing ones."""
    return f"CA + PA, trailing k = {latent} (the paper)"


def run_job(
    job: Job, data: HarData, options: HarOptions, *, dimensions: Sequence[int]
) -> dict[str, Any]:
    """Train one job, or take the latents that an earlier run kept, and score every method."""
    encoded = train_and_encode(job, data, options)
    with threadpoolctl.threadpool_limits(1):  # small products: threads only wait for each other
        return score_job(job, data, options, encoded, dimensions)


def score_job(
    job: Job, data: HarData, options: HarOptions, encoded: Encoded, dimensions: Sequence[int]
) -> dict[str, Any]:
    """Score every method on the latents of one training."""
    start = time.perf_counter()
    lifted, raw, backwards = (
        standardize(*transfer.make_task(kind, data.labels, job.split, source=a, target=b))
        for kind, a, b in (
            (data.lifted, job.source, TARGET),
            (data.raw, job.source, TARGET),
            (data.lifted, TARGET, job.source),
        )
    )
    runs = []
    both = zip(
        pose_latents(job, data, encoded),
        pose_latents(job, data, encoded, backwards=True),
        strict=True,
    )
    for seed, (own, turned) in enumerate(both):
        key = jax.random.fold_in(jax.random.key(options.seed), seed)
        found = dict(score_encoders(own, lifted, key, dimensions))
        turned = methods.to_directions(*turned)
        found[f"{REVERSE}{CA}"] = score(*turned)
        joined = methods.join(turned, backwards, weight=0.5)
        found[f"{REVERSE}{JOINED}"] = score(*methods.align_lifted(*joined))
        if seed == 0:
            found |= dict(score_the_rest(raw, lifted, pose_untrained(job, data, options)))
        runs.append(found)
    return {
        "job": job,
        "runs": runs,
        "losses": encoded.losses,
        "watched": encoded.watched,
        "seconds": {
            "training": float(encoded.seconds),
            "scoring": time.perf_counter() - start,
        },
    }


def pose_untrained(job: Job, data: HarData, options: HarOptions) -> methods.Posed:
    """Task and exam in the latent space of encoders that have seen nothing."""
    keys = jax.random.split(jax.random.key(options.seed), 1)
    trained = contrastive.start(make_branches(job.source, job.latent), keys)
    latents = {
        job.source: contrastive.encode(trained, data.inputs[job.source], view=0)[0],
        TARGET: contrastive.encode(trained, data.inputs[TARGET], view=1)[0],
    }
    posed = transfer.make_task(latents, data.labels, job.split, source=job.source, target=TARGET)
    return methods.to_directions(*posed)


def standardize(task: transfer.Task, exam: transfer.Exam) -> tuple[transfer.Task, transfer.Exam]:
    """Standardise features over the pairs, one number for each feature."""
    maps = []
    for x in task.pairs:
        rows = np.arange(len(x))
        maps.append(
            lambda y, x=x, rows=rows: np.asarray(
                features.standardize(np.concatenate([x, y]), rows=rows)
            )[len(rows) :]
        )
    return task.encode(*maps), exam.encode(*maps)


def score(task: transfer.Task, exam: transfer.Exam, ranks: np.ndarray | None = None) -> Any:
    """Hits of each top, clip by clip; of latents also how well held-out pairs agree."""
    if ranks is None:
        ranks = transfer.rank_classes(task.labelled, task.labels, task.unseen)
        agreement = exam.agreement(task)
    else:
        agreement = {}
    hits = exam.score(ranks)
    return {"hits": {str(top): hits[top].astype(int).tolist() for top in TOPS}, **agreement}


def score_encoders(
    own: tuple[transfer.Task, transfer.Exam],
    lifted: tuple[transfer.Task, transfer.Exam],
    key: jax.Array,
    dimensions: Sequence[int],
) -> Iterator[tuple[str, Any]]:
    """Every method that needs the trained encoders."""
    papers = name_of_papers(own[0].pairs[0].shape[1])
    yield CA + KEPT, score(*own)
    _, task, exam = next(methods.align_latents(*own))
    yield papers + KEPT, score(task, exam)
    own = methods.to_directions(*own)  # what the loss has trained
    yield CA, score(*own)
    yield CA + MLP, score(*own, methods.rank_by_mlp(own[0], key=key))
    aligned = methods.align_latents(*own, dimensions=dimensions, components=dimensions)
    for name, task, exam in aligned:
        yield f"CA + {'PA, ' if 'ridge' not in name else ''}{name}", score(task, exam)
        if f"CA + PA, {name}" == papers:
            yield papers + MLP, score(task, exam, methods.rank_by_mlp(task, key=key))
    yield JOINED, score(*methods.align_lifted(*methods.join(own, lifted, weight=0.5)))


def score_the_rest(
    raw: tuple[transfer.Task, transfer.Exam],
    lifted: tuple[transfer.Task, transfer.Exam],
    untrained: tuple[transfer.Task, transfer.Exam],
) -> Iterator[tuple[str, Any]]:
    """Every method that needs no training."""
    yield RAW, score(*methods.align_lifted(*raw))
    yield LIFTED, score(*methods.align_lifted(*lifted))
    task, exam = lifted
    yield PSEUDO, score(task, exam, methods.rank_by_pseudo_labels(task))
    bound = transfer.rank_classes(exam.bound, task.labels, task.unseen)
    yield BOUND, score(task, exam, bound)
    yield "untrained encoders", score(*untrained)
    for name, after, own in methods.align_latents(*untrained, dimensions=(128,), components=()):
        if "ridge" not in name:
            yield f"untrained encoders + PA, {name}", score(after, own)
