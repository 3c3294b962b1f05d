# SPDX-License-Identifier: Apache-2.0
"""From a study to its model.

An architecture is one module with `build(study) -> MedicalModel`, named in `MODEL_MODULES` and in `common.study.MODEL_NAMES`, and
imported only when a study asks for it. The registry decides the rest: initial weights from the study's seed (equal on every machine
with the same torch), pretrained weights, freezing, and a check that the model can be trained privately at all.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from common.errors import InputError, ProtocolError
from common.models.backbone import BackboneModel
from common.models.base import MedicalModel
from common.models.layers import WSConv2d
from common.study import Study

LOG = logging.getLogger(__name__)

MODEL_MODULES: Mapping[str, str] = {
    "cnn": "common.models.cnn",
    "scattering": "common.models.scattering",
    "resnet18": "common.models.resnet",
    "densenet121": "common.models.densenet",
    "vgg16": "common.models.vgg",
    "mlp": "common.models.mlp",
    "logistic": "common.models.logistic",
}
PER_SAMPLE_LAYERS: tuple[type[nn.Module], ...] = (nn.Conv1d, nn.Conv2d, nn.Conv3d, WSConv2d, nn.Linear, nn.GroupNorm, nn.LayerNorm)


def build_model(study: Study) -> MedicalModel:
    """The study's model with its initial weights, on the CPU; the global random generators are left as they were.

    Raises InputError when the pretrained file does not fit or the model cannot be trained privately.
    """
    module = importlib.import_module(MODEL_MODULES[study.model.name])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(study.seed)
        model: MedicalModel = module.build(study)
    if study.model.pretrained is not None:
        use_pretrained(model, study)
    check_model(model)
    return model


def use_pretrained(model: MedicalModel, study: Study) -> None:
    """Load the study's pretrained weights, and freeze the backbone if it says so."""
    from common.models.weights import load_pretrained

    if study.model.pretrained is None or not isinstance(model, BackboneModel):
        raise InputError(f"model.pretrained: {study.model.name} has no pretrained weights; remove it")
    for note in load_pretrained(model, study.model.pretrained, study.model.name):
        LOG.warning("pretrained weights: %s", note)
    if study.model.freeze == "backbone":
        model.freeze_backbone()


def check_model(model: nn.Module) -> None:
    """Raise InputError with everything that keeps `model` from being trained privately; silence means that it can be."""
    problems = [problem for name, module in model.named_modules() for problem in module_problems(name or type(model).__name__, module)]
    problems += shared_parameters(model)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        problems.append("no parameter is trainable; leave at least the head trainable")
    if problems:
        raise InputError(problems)


def module_problems(name: str, module: nn.Module) -> Iterator[str]:
    """What is wrong with one module by itself, one line each with its remedy."""
    kind = type(module).__name__
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        yield f"{name}: {kind} mixes the patients of a batch and keeps statistics of them; use GroupNorm"
        return
    if getattr(module, "inplace", False):
        yield f"{name}: {kind} works in place and overwrites what per-sample gradients need; use inplace=False"
    for buffer, _ in module.named_buffers(recurse=False):
        yield f"{name}: buffer {buffer!r} could carry patient data past the noise; make a constant a parameter with requires_grad=False"
    trainable = any(parameter.requires_grad for parameter in module.parameters(recurse=False))
    if trainable and type(module) not in PER_SAMPLE_LAYERS:
        known = ", ".join(layer.__name__ for layer in PER_SAMPLE_LAYERS)
        yield f"{name}: no rule for per-sample gradients of {kind}; use one of {known}, or set requires_grad=False"


def shared_parameters(model: nn.Module) -> list[str]:
    """Trainable parameters that are used under two names: their per-sample gradients would be counted apart."""
    first: dict[int, str] = {}
    problems = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if parameter.requires_grad and other != name:
            problems.append(f"{name}: the same parameter as {other}; give each layer its own")
    return problems


def initial_state(study: Study) -> dict[str, npt.NDArray[np.float32]]:
    """The initial trainable weights of the study by name, float32 copies: where round 0 starts."""
    return {name: value.numpy().astype(np.float32, copy=True) for name, value in build_model(study).trainable_state().items()}


def load_state(model: MedicalModel, arrays: Mapping[str, npt.NDArray[np.generic]]) -> None:
    """Copy arrays into the trainable parameters, in place, all or nothing.

    Raises ProtocolError with every problem unless names, shapes and dtype (float32) are exactly the model's.
    """
    own = model.trainable_state()
    problems = [f"{name}: missing" for name in own if name not in arrays]
    problems += [f"{name}: not a trainable parameter of the model" for name in arrays if name not in own]
    for name in own.keys() & arrays.keys():
        array, shape = arrays[name], tuple(own[name].shape)
        if array.dtype != np.float32 or array.shape != shape:
            problems.append(f"{name}: {array.dtype} {array.shape}, expected float32 {shape}")
    if problems:
        raise ProtocolError("weights do not fit the study's model; both ends need the same version: " + "; ".join(sorted(problems)))
    for name, value in own.items():
        if value.device.type == "cpu":  # without a tensor in between, which torch copies too because arrays of a message are read-only
            np.copyto(value.numpy(), arrays[name])
        else:
            value.copy_(torch.tensor(arrays[name]))
