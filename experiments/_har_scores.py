"""Every method of Table 1 on one training: ranked classes, hit or miss clip by clip."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import threadpoolctl
from _har_data import (
    TARGET,
    HarData,
    HarOptions,
    Job,
    make_branches,
    pose,
    pose_latents,
    train_and_encode,
)
from _transfer_data import BOTH, LIFTED

from perfalign_jax.har.nn import training
from perfalign_jax.har.nn.decoder import rank_by_mlp
from perfalign_jax.har.protocol import methods, transfer
from perfalign_jax.har.protocol.methods import ALIGN, INFORMATIVE, Method, Posed

TOPS = (1, 3, 5, 7)
KEPT, JOINED, UNTRAINED = "CA, lengths kept", "CA beside random convolutions", "untrained encoders"
MLP = "MLP decoder"
CA = Method("identity", space="CA")
CA_KEPT = replace(CA, space=KEPT)
TOGETHER = f"{LIFTED} of {BOTH}"
LIFTED_PA, JOINED_PA = replace(INFORMATIVE, space=LIFTED), replace(INFORMATIVE, space=JOINED)
BOUND = Method("identity", space=LIFTED, decoder="supervised bound")
PSEUDO = Method("identity", space=LIFTED, decoder="pseudo-labels")
TRAINED = (CA.space, KEPT, JOINED)  # what another training would change
SCORED = ("identity", "ridge_regression", "ridge_cca", "trailing", "energy", "align")

Scores = Iterator[tuple[Method, dict[str, Any]]]


def name_of_papers(latent: int, *, space: str = CA.space) -> Method:
    """The method of the paper: every latent dimension, the trailing ones, the means left in."""
    return Method("trailing", k=latent, center=False, space=space)


@threadpoolctl.threadpool_limits.wrap(limits=1)  # small products: threads wait for each other
def run_job(
    job: Job, data: HarData, options: HarOptions, *, dimensions: Sequence[int]
) -> dict[str, Any]:
    """Train one job, or take the latents that an earlier run kept, and score every method."""
    encoded = train_and_encode(job, data, options)
    start = time.perf_counter()
    runs = []
    lifted, turned_lifted = (
        methods.standardise(*pose(job, data, data.lifted, backwards=turned))
        for turned in (False, True)
    )
    ways = (pose_latents(job, data, encoded, backwards=turned) for turned in (False, True))
    for seed, (own, turned) in enumerate(zip(*ways, strict=True)):
        key = jax.random.fold_in(jax.random.key(options.seed), seed)
        found = dict(score_encoders(own, lifted, key, dimensions))
        turned = methods.to_directions(*turned)
        found[replace(CA, backwards=True)] = score(*turned)
        found[replace(JOINED_PA, backwards=True)] = score_joined(turned, turned_lifted)
        if seed == 0 and job.untrained:
            found |= dict(score_the_rest(lifted, pose_untrained(job, data, options)))
            if BOTH in data.lifted and job.source == "skeleton":  # the same for either source
                found |= dict(score_together(job, data))
        runs.append(found)
    seconds = {"training": float(encoded.seconds), "scoring": time.perf_counter() - start}
    history = {"losses": encoded.losses, "watched": encoded.watched}
    return {"job": job, "runs": runs, "seconds": seconds, **history}


def pose_untrained(job: Job, data: HarData, options: HarOptions) -> Posed:
    """Task and exam in the latent space of encoders that have seen nothing."""
    keys = jax.random.split(jax.random.key(options.seed), 1)
    trained = training.start(make_branches(job.source, job.latent), keys)
    latents = {
        modality: training.encode(trained, data.inputs[modality], view=view)[0]
        for view, modality in enumerate((job.source, TARGET))
    }
    return methods.to_directions(*pose(job, data, latents))


def score(
    task: transfer.Task, exam: transfer.Exam, ranks: np.ndarray | None = None
) -> dict[str, Any]:
    """Hits of each top, clip by clip; of latents also how well held-out pairs agree."""
    agreement = {}
    if ranks is None:
        ranks = transfer.rank_classes(task.labelled, task.labels, task.unseen)
        agreement = exam.agreement(task)
    hits = exam.score(ranks)
    return {"hits": {str(top): hits[top].astype(int).tolist() for top in TOPS}, **agreement}


def align_all(posed: Posed, space: str, listed: Sequence[Method]) -> Iterator[Any]:
    for method, task, exam in methods.align_all(*posed, methods=listed):
        yield replace(method, space=space), task, exam


def score_encoders(own: Posed, lifted: Posed, key: jax.Array, dimensions: Sequence[int]) -> Scores:
    """Every method that needs the trained encoders."""
    size = own[0].pairs[0].shape[1]
    paper = name_of_papers(size, space="")
    for method, task, exam in align_all(own, KEPT, [Method("identity"), paper]):
        yield method, score(task, exam)
    own = methods.to_directions(*own)  # what the loss has trained
    fewer = [k for k in dimensions if k < size]
    every = methods.list_methods(dimensions=fewer, components=fewer)
    listed = [paper, *(m for m in every if m.kind in SCORED and m != INFORMATIVE)]
    for method, task, exam in align_all(own, CA.space, listed):
        yield method, score(task, exam)
        if method == CA or not method.center:
            ranks = rank_by_mlp(task, key=key)
            yield replace(method, decoder=MLP), score(task, exam, ranks)
    yield JOINED_PA, score_joined(own, lifted)


def score_joined(own: Posed, lifted: Posed) -> dict[str, Any]:
    """Latents of encoders beside random convolutions, aligned together."""
    return score(*methods.align(*methods.join(own, lifted, weight=0.5)))


def score_the_rest(lifted: Posed, untrained: Posed) -> Scores:
    """Every method that needs no training."""
    task, exam = lifted
    for method, after, own in align_all(lifted, LIFTED, [INFORMATIVE, ALIGN]):
        yield method, score(after, own)
    yield PSEUDO, score(task, exam, methods.rank_by_pseudo_labels(task))
    bound = transfer.rank_classes(exam.bound, task.labels, task.unseen)
    yield BOUND, score(task, exam, bound)
    paper = name_of_papers(untrained[0].pairs[0].shape[1], space="")
    listed = [Method("identity"), paper, Method("trailing", k=128), Method("energy", k=128)]
    for method, after, own in align_all(untrained, UNTRAINED, listed):
        yield method, score(after, own)


def score_together(job: Job, data: HarData) -> Scores:
    """Three views: skeleton and depth are one side, the sensor is the other."""
    posed = transfer.make_task(data.lifted, data.labels, job.split, source=BOTH, target=TARGET)
    for method, task, exam in align_all(
        methods.standardise(*posed), TOGETHER, [INFORMATIVE, ALIGN]
    ):
        yield method, score(task, exam)
