# SPDX-License-Identifier: Apache-2.0
"""Pretrained weights, checked by digest, and the frozen backbone."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import InputError
from common.models.registry import build_model
from common.models.resnet import ResNet18
from common.models.vgg import Vgg16
from common.models.weights import load_pretrained
from common.study import ExternalFile
from tests.common.models.studies import study


def stored(folder: Path, state: dict[str, Tensor]) -> ExternalFile:
    path = folder / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    return ExternalFile(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """What torchvision's file has: colour, 1000 classes, BatchNorm."""
    import torchvision

    torch.manual_seed(1)
    return dict(torchvision.models.resnet18().state_dict())


def test_torchvisions_weights_load_into_the_backbone(tmp_path: Path, imagenet: dict[str, Tensor]) -> None:
    model = ResNet18(64, 3, 1)
    head = model.state_dict()["fc.weight"].clone()
    notes = load_pretrained(model, stored(tmp_path, imagenet), "resnet18")
    own = model.state_dict()
    assert torch.equal(own["fc.weight"], head)
    assert all(torch.equal(own[name], imagenet[name]) for name in own if not name.startswith("fc."))
    assert len(notes) == 2
    assert "fc: left at its initial value" in notes[0]
    assert notes[1].startswith("60 running statistics of BatchNorm ignored")


def test_a_grey_image_gives_the_response_of_the_same_image_in_colour(tmp_path: Path, imagenet: dict[str, Tensor]) -> None:
    grey, colour = ResNet18(64, 1, 1), ResNet18(64, 3, 1)
    file = stored(tmp_path, imagenet)
    assert "conv1.weight: summed" in load_pretrained(grey, file, "resnet18")[0]
    load_pretrained(colour, file, "resnet18")
    image = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.allclose(grey.backbone(image), colour.backbone(image.expand(1, 3, 64, 64)), atol=1e-4)


def test_a_head_of_the_same_size_is_taken_and_nothing_is_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source, model = ResNet18(32, 1, 3), ResNet18(32, 1, 3)
    assert load_pretrained(model, stored(tmp_path, source.state_dict()), "resnet18") == ()
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in model.state_dict().items())


def test_vgg_leaves_torchvisions_three_large_layers(tmp_path: Path) -> None:
    source, model = Vgg16(32, 3, 1), Vgg16(32, 3, 1)
    state = {name: value for name, value in source.state_dict().items() if name.startswith("features.")}
    notes = load_pretrained(
        model, stored(tmp_path, {**state, "classifier.0.weight": torch.zeros(4, 4), "classifier.6.bias": torch.zeros(4)}), "vgg16"
    )
    assert len(notes) == 1
    assert torch.equal(model.state_dict()["features.28.weight"], state["features.28.weight"])


def test_another_file_is_refused_with_both_digests(tmp_path: Path) -> None:
    file = stored(tmp_path, {"x": torch.zeros(1)})
    with pytest.raises(InputError) as error:
        load_pretrained(ResNet18(32, 1, 1), ExternalFile(path=file.path, sha256="0" * 64), "resnet18")
    assert file.sha256 in str(error.value)
    assert "0" * 64 in str(error.value)
    assert "put its digest into the study" in str(error.value)


def test_a_pickle_is_refused_and_the_way_to_convert_is_said(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"fc.weight": torch.zeros(1)}, path)
    file = ExternalFile(path=str(path), sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(InputError, match=r"never read.*save_file\(torchvision\.models\.densenet121"):
        load_pretrained(ResNet18(32, 1, 1), file, "densenet121")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file or directory; correct the path"):
        load_pretrained(ResNet18(32, 1, 1), ExternalFile(path=str(tmp_path / "none"), sha256="0" * 64), "resnet18")


def test_every_mismatch_is_listed_and_nothing_is_copied(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ResNet18(32, 1, 1)
    state = {name: value + 1 for name, value in model.state_dict().items()}
    del state["layer1.0.conv1.weight"]
    state["layer9.weight"] = torch.zeros(1)
    state["bn1.bias"] = torch.zeros(63)
    state["bn1.weight"] = torch.full((64,), torch.nan)
    before = model.state_dict()["layer2.0.conv1.weight"].clone()
    with pytest.raises(InputError) as error:
        load_pretrained(model, stored(tmp_path, state), "resnet18")
    text = str(error.value)
    assert len(error.value.problems) == 4
    for part in (
        "layer1.0.conv1.weight: not in the file",
        "layer9.weight: not in the model",
        "shape [63] in the file, [64]",
        "bn1.weight: not finite",
    ):
        assert part in text
    assert torch.equal(model.state_dict()["layer2.0.conv1.weight"], before)


def test_a_study_freezes_the_backbone(tmp_path: Path, imagenet: dict[str, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    file = stored(tmp_path, imagenet)
    with caplog.at_level(logging.WARNING):
        model = build_model(study("resnet18", 32, pretrained=file.model_dump(), freeze="backbone"))
    assert "running statistics of BatchNorm ignored" in caplog.text
    assert list(model.trainable_state()) == ["fc.weight", "fc.bias"]
    images = torch.randn(2, 1, 32, 32)
    features = model.frozen_features(images)
    assert features.shape == (2, 512)
    assert not features.requires_grad
    whole = build_model(study("resnet18", 32, pretrained=file.model_dump()))
    assert whole.feature_digest is None
    assert torch.allclose(model(features), whole(images), atol=1e-5)
    with pytest.raises(TypeError, match="no frozen features"):
        whole.frozen_features(images)


def test_the_feature_digest_names_weights_and_size_but_not_the_head(tmp_path: Path) -> None:
    def digest(size: int = 32, channels: int = 1, outputs: int = 1, change: str = "") -> str:
        torch.manual_seed(0)
        model = ResNet18(size, channels, outputs)
        if change:
            with torch.no_grad():
                model.get_parameter(change).view(-1)[0].add_(1)
        model.freeze_backbone()
        return str(model.feature_digest)

    plain = digest()
    assert digest() == plain == digest(change="fc.weight")
    assert len({plain, digest(size=64), digest(channels=3), digest(change="layer4.1.bn2.bias")}) == 4
