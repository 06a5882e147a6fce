"""Methods that change the target's weights: joint training, fine-tuning, LwF, EWC, iCaRL.

What cannot be chosen in regime R1, where no image tells what is forgotten, is fixed here for all benchmarks.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pnc_hub.models.classifier import classifier_name
from recipes.compare.probes import Features
from recipes.compare.study import Study
from recipes.frame.task import NotForThisTask, Result, Task

# DISTILLATION, STIFFNESS and the rate of STILL were compared on C10, seed 1992, by the mean accuracy of both sides on held-out
# training images, with few steps; the others are usual values.
SHARE = 0.5  # of the passes that a network is trained for
DISTILLATION, TEMPERATURE = 1.0, 2.0
GENTLE = ("sgd", 0.02, 5e-4)
STILL = ("adamw", 2e-3, 0.0)  # where the statistics of normalisation are kept, larger steps of SGD diverge
STIFFNESS, FISHER_IMAGES = 1e3, 300


def joint(task: Task) -> Result:
    """One network for all classes from random weights: what could be had if nothing had been trained before."""
    if task.untrained is None:
        raise NotForThisTask("the networks of this benchmark were trained by others on images that are not here")
    study = Study(task)
    model = study.train(task.untrained(study.known + study.count), study.joint_data(), 1.0)
    return study.result(model, [model])


def finetune(task: Task) -> Result:
    """The target with a wider head, trained on what the regime gives; 20 images of a class are shown repeatedly."""
    study = Study(task)
    model = study.train(widened(study), study.joint_data(repeat=True), SHARE, GENTLE)
    return study.result(model, [model])


def lwf(task: Task) -> Result:
    """Learning without forgetting (Li and Hoiem, ECCV 2016): on the new images it should still say what it said."""
    study = Study(task)
    before = study.networks.target.model

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        model.eval()  # statistics of the new images alone would fit no others
        logits = model(images)
        return _among_new(study, logits, labels) + DISTILLATION * _forgotten(study, logits, before(images))

    model = study.train(widened(study), study.joint_data(), SHARE, STILL, loss)
    return study.result(model, [model])


def ewc(task: Task) -> Result:
    """Elastic weight consolidation (Kirkpatrick et al., PNAS 2017): what the old classes hang on may change little.

    The images that the target learned from are not there, so that the Fisher information is that of its own answers on
    the images at hand.
    """
    study = Study(task)
    start = widened(study)
    stiffness = _fisher(study, start)
    anchor = {name: parameter.detach().clone() for name, parameter in start.named_parameters()}

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        model.eval()
        moved = sum(
            (stiffness[name] * (parameter - anchor[name]) ** 2).sum() for name, parameter in model.named_parameters()
        )
        return _among_new(study, model(images), labels) + STIFFNESS / 2 * moved

    model = study.train(start, study.joint_data(), SHARE, STILL, loss)
    return study.result(model, [model])


def icarl(task: Task) -> Result:
    """Rehearsal, distillation and the nearest mean of unit features: iCaRL (Rebuffi et al., CVPR 2017)."""
    study = Study(task)
    before = study.networks.target.model

    def loss(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
        logits = model(images)
        return F.cross_entropy(logits, labels) + _forgotten(study, logits, before(images))

    model = study.train(widened(study), study.joint_data(repeat=True), SHARE, GENTLE, loss)
    read = Features(model.requires_grad_(False))
    means = nn.Linear(model.get_classifier().in_features, study.known + study.count).requires_grad_(False)
    means.weight.zero_()
    means.bias.fill_(float("-inf"))  # of classes whose images are not there
    for dataset, shift in ((task.old, 0), (task.new, study.known)):
        features, labels = read.rows(study, dataset, shift)
        for label in labels.unique():
            mean = F.normalize(features[labels == label]).mean(0)
            means.weight[label] = F.normalize(mean, dim=0)
            means.bias[label] = 0
    means = means.to(study.device)

    def predict(images: Tensor) -> Tensor:
        return means(F.normalize(read(images)[1]))

    return study.result(predict, [model, means])


@torch.no_grad()
def widened(study: Study) -> nn.Module:
    """A copy of the target whose classifier has a row more for each cloned class."""
    model = copy.deepcopy(study.networks.target.model)
    name, count = classifier_name(model), study.known + study.count
    head = model.get_submodule(name)
    with torch.random.fork_rng():
        torch.manual_seed(study.task.seed)
        wide = nn.Linear(head.in_features, count, device=study.device)
    wide.weight[: study.known] = head.weight
    wide.bias[: study.known] = 0.0 if head.bias is None else head.bias
    # a new row begins like an average old one: it neither wins nor loses everywhere
    wide.bias[study.known :] = wide.bias[: study.known].mean()
    wide.weight[study.known :] *= wide.weight[: study.known].std() / wide.weight[study.known :].std()
    model.set_submodule(name, wide)
    model.num_classes = count
    return model.requires_grad_(True)


def _among_new(study: Study, logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy over the new classes alone: against the old ones too, it would only teach never to answer those."""
    return F.cross_entropy(logits[:, study.known :], labels - study.known)


def _forgotten(study: Study, logits: Tensor, before: Tensor) -> Tensor:
    """KL between what the target said and what its rows say now, at ``TEMPERATURE``."""
    now = (logits[:, : study.known] / TEMPERATURE).log_softmax(1)
    goal = (before.float() / TEMPERATURE).softmax(1)
    return F.kl_div(now, goal, reduction="batchmean") * TEMPERATURE**2


def _fisher(study: Study, model: nn.Module) -> dict[str, Tensor]:
    """Diagonal of the Fisher information of the target's answers, by parameter; zero for the new rows."""
    total = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(study.task.seed)
    chosen = torch.randperm(len(study.new[0]), generator=generator)[:FISHER_IMAGES].tolist()
    model.eval()
    for index in chosen:
        log_p = model(study.new[0][index][0][None].to(study.device))[:, : study.known].log_softmax(1)[0]
        answer = int(torch.multinomial(log_p.detach().exp().cpu(), 1, generator=generator))
        model.zero_grad()
        log_p[answer].backward()
        for name, parameter in model.named_parameters():
            total[name] += parameter.grad**2 / len(chosen)
    model.zero_grad()
    return total
