# SPDX-License-Identifier: Apache-2.0
"""The book-keeping engine (Bu et al. 2023, arXiv 2210.00038): one forward pass, one backward pass, patients clipped from what they left.

recorder      input and output gradient of every trainable layer, from one forward and one input-only backward pass
gradients     per layer type: each patient's gradient, if that is the cheaper way
ghost         or each patient's norm without the gradient, and the sum of all patients in one product
patient_sum   norms -> clipping factors -> the clipped sum, with a bound on every float error in it
certificate   measures the float error of the large products, where no bound by theory is small enough
optimiser     the step of Opacus' optimiser for fast gradient clipping: integer noise, public divisor
self_test     before the first step: is what the recorder sees all there is?
engine        `BookkeepingStepper`, the `PrivateStepper` that holds them together
"""
