# SPDX-License-Identifier: Apache-2.0
"""The yardstick: federated averaging as a plain PyTorch loop, one process, no framework; the same maths as a run without privacy.

Takes a run directory that `simulations.prepare` wrote (for the same sites and splits) and trains in memory.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional


def main(folder: Path, threads: int) -> None:
    torch.set_num_threads(threads)
    from common.models.registry import build_model
    from common.study import Study

    study = Study.model_validate_json((folder / "study.json").read_text())
    data = Path(json.loads((folder / "request.json").read_text())["dataset"])
    images, labels, patients = (np.load(data / f"{name}.npy") for name in ("images", "labels", "patients"))
    sites = [_patients(Path(folder, site), patients) for site in json.loads((folder / "sites.json").read_text())]
    model = build_model(study)
    parameters = [value for value in model.parameters() if value.requires_grad]
    torch.optim.Adam(parameters)  # the first optimiser loads torch._dynamo: start-up, not training
    started = time.monotonic()
    print(json.dumps({"event": "first_step", "time": time.time()}), flush=True)
    for round_number in range(study.federation.rounds):
        before = [value.detach().clone() for value in parameters]
        total = [torch.zeros_like(value) for value in parameters]
        for site in sites:
            _train(study, model, parameters, before, site, images, labels, round_number)
            for summed, value, old in zip(total, parameters, before, strict=True):
                summed += (value.detach() - old) / len(sites)
        for value, old, change in zip(parameters, before, total, strict=True):
            value.data.copy_(old + change)
    print(json.dumps({"event": "done", "seconds": time.monotonic() - started}), flush=True)


def _patients(site: Path, patients: np.ndarray) -> list[np.ndarray]:
    rows = np.load(site / "rows.npy")[np.load(site / "split.npy") == 0]
    owners = patients[rows]
    order = np.argsort(owners, kind="stable")
    return np.split(rows[order], np.flatnonzero(np.diff(owners[order])) + 1)


def _train(study, model, parameters, before, site, images, labels, round_number) -> None:
    from common.data.transforms import augment

    training = study.training
    for value, old in zip(parameters, before, strict=True):
        value.data.copy_(old)
    optimiser = torch.optim.Adam(parameters, lr=training.learning_rate)
    random = np.random.default_rng(round_number)
    counts = np.array([len(rows) for rows in site])
    flat = np.concatenate(site)
    first = np.cumsum(counts) - counts
    for step in range(training.local_steps):
        rate = training.learning_rate * 0.5 * (1 + np.cos(np.pi * (round_number * training.local_steps + step) / study.total_steps))
        optimiser.param_groups[0]["lr"] = rate
        drawn = random.choice(len(site), size=round(training.sampling_rate * len(site)), replace=False)
        rows = flat[first[drawn] + (random.random(len(drawn)) * counts[drawn]).astype(np.int64)]
        batch = (torch.from_numpy(images[rows]).float() / 255 - 0.5) / 0.25
        if training.augmentation.is_active:
            batch = augment(batch, training.augmentation, torch.rand(len(rows), 8))
        optimiser.zero_grad(set_to_none=True)
        functional.binary_cross_entropy_with_logits(model(batch), torch.from_numpy(labels[rows]).float()).backward()
        optimiser.step()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
