# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights: a safetensors file that is named by its SHA-256, and never a pickle.

Every weight of the backbone must be in the file with its own name and shape. The head is taken when it fits and stays at its initial
value otherwise. A first convolution for colour is summed over its three inputs when the model takes grey images: a grey image shown
as colour gives the same response. BatchNorm's running statistics in the file are ignored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from common.errors import InputError
from common.models.backbone import BackboneModel
from common.study import ExternalFile

RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def load_pretrained(model: BackboneModel, file: ExternalFile, architecture: str) -> tuple[str, ...]:
    """Copy the weights of `file` into `model` and return notes on what was left out, one line each.

    `architecture` is torchvision's name of the model, for the remedy in an error. Raises InputError when the file is missing, has
    another digest, is no safetensors file, or does not fit; then nothing was copied.
    """
    found = parse(read_checked(file), file.path, architecture)
    notes = []
    stem = model.stem_name + ".weight"
    if stem in found and is_colour_for_grey(found[stem], model.get_parameter(stem)):
        found[stem] = found[stem].sum(dim=1, keepdim=True)
        notes.append(f"{stem}: summed over red, green and blue, because the images are grey")
    if not head_fits(model, found):
        notes.append(f"{model.head_name}: left at its initial value, because the file has no head of this size")
        found = {name: value for name, value in found.items() if not model.in_head(name)}
    ignored = [name for name in found if name.endswith(RUNNING_STATISTICS)]
    if ignored:
        notes.append(
            f"{len(ignored)} running statistics of BatchNorm ignored: this model has GroupNorm, so its features differ from the original's"
        )
    wanted = {name: value for name, value in model.named_parameters() if name in found or not model.in_head(name)}
    copy_weights(wanted, {name: value for name, value in found.items() if name not in ignored}, file.path)
    return tuple(notes)


def read_checked(file: ExternalFile) -> bytes:
    """Content of `file`. Raises InputError when it cannot be read or is not the file that the study names."""
    try:
        content = Path(file.path).read_bytes()
    except OSError as error:
        raise InputError(f"model.pretrained.path: cannot read {file.path}: {error.strerror}; correct the path") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise InputError(
            f"model.pretrained: {file.path} has SHA-256 {digest}, but the study says {file.sha256}; "
            "get the file that the study means, or, if this is the right one, put its digest into the study"
        )
    return content


def parse(content: bytes, path: str, architecture: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises InputError with the way to convert anything else."""
    import safetensors
    from safetensors.torch import load

    try:
        return dict(load(content))
    except safetensors.SafetensorError as error:
        raise InputError(
            f"model.pretrained: {path} is not a safetensors file ({error}); a .pth is a pickle, which can run code and is never read. "
            f"Convert torchvision's weights once, where there is a network: python -c \"import torchvision, safetensors.torch as s; "
            f"s.save_file(torchvision.models.{architecture}(weights='DEFAULT').state_dict(), '{architecture}.safetensors')\""
        ) from error


def is_colour_for_grey(found: Tensor, wanted: Tensor) -> bool:
    """Whether the file's first convolution takes colour images and the model's takes grey ones, and all else agrees."""
    return found.dim() == 4 and found.shape[1] == 3 and (found.shape[0], 1, *found.shape[2:]) == wanted.shape


def head_fits(model: BackboneModel, found: Mapping[str, Tensor]) -> bool:
    """Whether the file has exactly the model's head."""
    own = {name: value.shape for name, value in model.named_parameters() if model.in_head(name)}
    return own == {name: value.shape for name, value in found.items() if model.in_head(name)}


def copy_weights(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor], path: str) -> None:
    """Copy `found` into `wanted`, all or nothing. Raises InputError with every mismatch."""
    problems = [f"{name}: not in the file" for name in wanted if name not in found]
    problems += [f"{name}: not in the model" for name in found if name not in wanted]
    problems += [text for name in wanted if name in found for text in mismatches(name, wanted[name], found[name])]
    if problems:
        remedy = "take weights of the same architecture, or change model.name"
        raise InputError([f"model.pretrained: {path}: {problem}; {remedy}" for problem in problems])
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(found[name])


def mismatches(name: str, wanted: Tensor, found: Tensor) -> list[str]:
    """What keeps one tensor from being used."""
    if found.shape != wanted.shape:
        return [f"{name}: shape {list(found.shape)} in the file, {list(wanted.shape)} in the model"]
    if not found.is_floating_point() or not bool(torch.isfinite(found).all()):
        return [f"{name}: not finite floating-point numbers"]
    return []
