"""Fitting estimators such as ridge regression, at once and to features in memory."""

import numpy as np
import torch

from featstore.support import size
from heads.errors import TrainingError
from heads.systems.layers import n_joined
from heads.systems.system import NO_FOLD, Sample
from heads.training.features import MINIBATCH, Features
from heads.training.learner import Job, Problem, Trained, assemble, learned_by
from heads.training.prediction import collect, parts, run
from heads.training.standardising import Standardised, count


def solve(problem: Problem, job: Job, features: Features) -> Trained:
    """Fit an estimator to the training rows of a job and let it predict the rows that it is tested on.

    Raises:
        TrainingError: the rows do not fit in the memory allowed, or the estimator cannot be fitted to them.
    """
    target = problem.target if job.task is None else problem.target.only(job.task)
    module = assemble(problem.system, problem.shapes, problem.layouts, target, problem.options)
    sample = sample_of(problem, job, features, module)
    assert problem.system.fit is not None
    model = parts(module)[0]
    problem.system.fit(model, sample, problem.options)
    here = torch.device("cpu")
    groups = features.groups(job.test)
    said = [each for group in groups for each in run(module, group, job.test, device=here, attend=True)]
    predicted, attention = collect(said, job.test, target)
    weights = {name: value.detach() for name, value in module.state_dict().items()}
    return Trained(job, weights, [], predicted, attention, learned_by(model))


def solving_bytes(problem: Problem, job: Job) -> int:
    """What fitting one model takes beside the features."""
    n_rows = len(job.fit) + len(job.inner)
    needed = 12 * n_rows * n_joined(problem.shapes)
    return needed + (problem.system.fit_bytes(n_rows, problem.shapes) if problem.system.fit_bytes else 0)


def sample_of(problem: Problem, job: Job, features: Features, module: torch.nn.Module) -> Sample:
    """The rows of a job in memory, standardised with statistics of all of them."""
    rows = np.concatenate([job.fit, job.inner])
    width = n_joined(problem.shapes)
    needed = solving_bytes(problem, job) + (features.n_bytes if features.resident else 0)
    if needed > features.memory_bytes:
        raise TrainingError(
            f"{problem.system.name!r} is solved in memory and needs {size(needed)} for {len(rows)} images of {width} "
            "features; allow more with --memory, or train a head by gradient (`linear`), which streams"
        )
    place = np.empty(len(features), np.int64)
    place[rows] = np.arange(len(rows))
    folds = np.full(len(rows), NO_FOLD)
    for number, held in enumerate(job.inner_folds or ([job.inner] if len(job.inner) else [])):
        folds[place[held]] = number
    if isinstance(module, Standardised):
        moments = module.moments()
        for group in features.groups(rows):
            count(moments, group, rows)
        for number, each in enumerate(moments):
            module.learn(number, each)
    prepare = parts(module)[1]
    values = np.empty((len(rows), width), np.float32)
    for group in features.groups(rows):
        held = group.holds(rows)
        for start in range(0, len(held), MINIBATCH):
            found, some = group.batch(held[start : start + MINIBATCH], prepare)
            values[place[found]] = torch.cat([each.flatten(1) for each in some], 1).numpy()
    labels = problem.labels if job.task is None else problem.labels[:, [job.task]]
    target = problem.target if job.task is None else problem.target.only(job.task)
    return Sample(values, labels[rows], folds, target, job.seed, features.segments)
