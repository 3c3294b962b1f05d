# SPDX-License-Identifier: Apache-2.0
"""A picture out of an update: gradient inversion (Geiping et al. 2020, arXiv 2003.14053) of one round of one step with one patient.

The update is the client's own. The attacker has the best of it: one patient is drawn, the server chose the model (a random
head, open activations), knows the label and searches for the image whose gradient points where the update points: cosine distance plus
total variation, descended by Adam on the sign of the gradient. With the study's noise the same search runs on the noised update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call

from client.rows import ImageRows
from client.trainer import TrainingData
from common.data.cohort import ByteArray, Dataset
from common.models.base import INPUT_MEAN, INPUT_SCALE, MedicalModel, to_model_units
from common.models.registry import build_model
from common.privacy.calibration import PrivacyPlan
from common.protocol import Arrays
from common.study import Augmentation, Study
from simulations.audit.training import make_trainer

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]

STEPS: Final = 400
STEP_SIZE: Final = 0.05
SMOOTHNESS: Final = 3e-4
HEAD_SIZE: Final = 0.1
OPENNESS: Final = 2.0  # bias of the normalisation layers: nearly every ReLU lets through
START_SIZE: Final = 0.3
REPORT_EVERY: Final = 50
LOWEST, HIGHEST = -INPUT_MEAN / INPUT_SCALE, (1 - INPUT_MEAN) / INPUT_SCALE


@dataclass(frozen=True)
class Reconstruction:
    """An image uint8 [C, H, W] and how near it is to the original: PSNR in dB, SSIM (1 is equal)."""

    image: ByteArray
    psnr: float
    ssim: float


def attacked_study(study: Study) -> Study:
    """The study as the picture uses it: the small CNN, one round of one step in which everybody is drawn."""
    changes = {
        "model": {"name": "cnn"},
        "data.image_size": min(study.data.image_size, 32),
        "federation.rounds": 1,
        "training.local_steps": 1,
    }
    return study.with_changes(changes | {"training.sampling_rate": 1.0, "data.channels": 1})


def shrunk(image: ByteArray, size: int) -> ByteArray:
    """The first channel of an image [C, H, W], averaged down to [1, size, size]."""
    from common.data.resize import resize

    return np.ascontiguousarray(resize(image[:1], size)[0])[None]


def chosen_model(study: Study) -> MedicalModel:
    """What the attacking server sends: the study's initial network with a random head and open activations; any weights look alike."""
    model = build_model(study)
    random = torch.Generator().manual_seed(study.seed)
    with torch.no_grad():
        for name, value in model.trainable_state().items():
            if name.startswith("head."):
                value.copy_(torch.randn(value.shape, generator=random) * HEAD_SIZE)
            elif name.endswith(".bias"):
                value.fill_(OPENNESS)
    return model


def one_patient_update(study: Study, plan: PrivacyPlan, image: ByteArray, label: int) -> Arrays:
    """The update of a site whose only patient has `image` uint8 [C, H, W], from the client's own trainer."""
    start = {name: value.numpy().copy() for name, value in chosen_model(study).trainable_state().items()}
    dataset = Dataset(
        images=image[None],
        labels=np.array([label], dtype=np.int64),
        patients=np.zeros(1, dtype=np.int64),
        patient_ids=("one",),
        label_names=study.data.labels,
        columns={},
        split=None,
        natural_sites=None,
        synthetic=False,
        digest="",
    )
    rows = ImageRows(dataset, Augmentation(), torch.device("cpu"))
    data = TrainingData("site", "", dataset, [np.zeros(1, dtype=np.int64)], rows)
    trainer = make_trainer(study, plan, nominal_patients=1)
    delta = trainer.train(data, start, 1).delta
    trainer.close()
    return delta


def reconstruct(study: Study, delta: Arrays, original: ByteArray, label: int, progress: Progress) -> Reconstruction:
    """Search for the image behind `delta`; `original` is used only to say how near the result is."""
    model = chosen_model(study)
    weights = {name: value.clone().requires_grad_() for name, value in model.trainable_state().items()}
    goal = torch.cat([-torch.from_numpy(value.copy()).flatten() for value in delta.values()])
    target = torch.tensor([float(label)]) if study.task == "binary" else torch.tensor([label])
    guess = (torch.randn(1, *original.shape, generator=torch.Generator().manual_seed(study.seed)) * START_SIZE).requires_grad_()
    optimiser = torch.optim.Adam([guess], lr=STEP_SIZE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for step in range(STEPS):
        (gradient,) = torch.autograd.grad(_distance(study, model, weights, guess, target, goal), guess)
        guess.grad = gradient.sign()
        optimiser.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(LOWEST, HIGHEST)
        if (step + 1) % REPORT_EVERY == 0:
            progress(step + 1, STEPS)
    return compared(guess.detach()[0], original)


def _distance(study: Study, model: MedicalModel, weights: dict[str, Tensor], guess: Tensor, target: Tensor, goal: Tensor) -> Tensor:
    """Cosine distance of the guess's gradient from `goal`, plus total variation."""
    logits = functional_call(model, weights, (guess,))
    if study.task == "binary":
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
    else:
        loss = torch.nn.functional.cross_entropy(logits, target)
    found = torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(weights.values()), create_graph=True)])
    roughness = guess.diff(dim=-1).abs().mean() + guess.diff(dim=-2).abs().mean()
    return 1 - torch.nn.functional.cosine_similarity(found, goal, dim=0) + SMOOTHNESS * roughness


def compared(guess: Tensor, original: ByteArray) -> Reconstruction:
    """The guess (model units) as an image, and its distance from the original."""
    truth = (to_model_units(torch.from_numpy(original[None].copy()))[0] * INPUT_SCALE + INPUT_MEAN).double().numpy()
    found = (guess * INPUT_SCALE + INPUT_MEAN).clamp(0, 1).double().numpy()
    error = float(np.mean((truth - found) ** 2))
    return Reconstruction(np.rint(found * 255).astype(np.uint8), float(-10 * np.log10(max(error, 1e-10))), ssim(truth, found))


def ssim(first: FloatArray, second: FloatArray, window: int = 7) -> float:
    """Structural similarity of images [C, H, W] in 0…1, mean over windows (Wang et al. 2004, with uniform windows)."""
    from scipy.ndimage import uniform_filter

    def smooth(values: FloatArray) -> FloatArray:
        return np.asarray(uniform_filter(values, size=(1, window, window), mode="reflect"))

    mean_first, mean_second = smooth(first), smooth(second)
    variance_first = smooth(first**2) - mean_first**2
    variance_second = smooth(second**2) - mean_second**2
    covariance = smooth(first * second) - mean_first * mean_second
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean_first * mean_second + c1) * (2 * covariance + c2)
    return float(np.mean(above / ((mean_first**2 + mean_second**2 + c1) * (variance_first + variance_second + c2))))
