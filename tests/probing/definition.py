"""What operators give by their definitions: value and gradient, a session and an answer at a time."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fixate_jax.lab.config import OperatorConfig
from fixate_jax.prompts import PromptParams
from tests.probing import whole_matrix
from tests.probing.both_ways import EPS, Asked, Found
from tests.probing.whole_model import Tensor, WholeModel, exactly, target, torch


def slots_of(relevance: Tensor, position: np.ndarray, matrix: Tensor) -> Tensor:
    """Slot attention a = M·r / (Σ M·r + ε) from the relevance of a sequence's positions."""
    mass = matrix @ relevance[np.maximum(position, 0)].abs()
    return mass / (mass.sum() + EPS)


def relevance_of(
    model: WholeModel, configs: Mapping[str, OperatorConfig], at: Any, answer: np.ndarray
) -> tuple[dict[str, Tensor], Tensor]:
    """Row src of R by operator, and all logits."""
    run = model.run(at)
    tapped = run.matrices[-model.config.tapped :]
    gradients = list(torch.autograd.grad(target(run.logits, answer), tapped, create_graph=True))
    found = {}
    for name, config in configs.items():
        match config.name:
            case "input_gradient":
                found[name] = model.input_gradient(at, answer)
            case "integrated_gradients":
                found[name] = model.integrated_gradients(at, answer, config.steps)
            case "lrp":
                found[name] = model.lrp(at, run.states, answer)
            case _:
                found[name] = whole_matrix.relevance(config, tapped, gradients)[-1]
    return found, run.logits


def by_definition(
    model: WholeModel, configs: Mapping[str, OperatorConfig], asked: Asked, prompt: PromptParams
) -> dict[str, Found]:
    """Everything of some operators, put together as the library's batch is; positions of padding get 0."""
    basis, coefficients = (exactly(x).requires_grad_() for x in prompt)
    batch, inputs = asked.batch, asked.batch.inputs
    rows, answers, tail = asked.ids.shape
    keys = inputs.token_ids.shape[1] + tail
    losses = {name: np.zeros(2) for name in configs}
    relevance = {name: np.zeros((rows, answers, keys)) for name in configs}
    slots = {name: np.zeros((rows, answers, batch.slot_matrix.shape[1])) for name in configs}
    logits = np.zeros((rows, answers, tail, model.head.shape[1]))
    gradient = {name: jax.tree.map(lambda x: np.zeros((2, *x.shape)), prompt) for name in configs}

    def add(name: str, which: int, loss: Tensor, slope: tuple[Tensor, Tensor]) -> None:
        losses[name][which] += loss.item()
        for total, part in zip(gradient[name], slope, strict=True):
            total[which] += part.numpy()

    def slope_of(loss: Tensor) -> Any:
        return torch.autograd.grad(loss, (basis, coefficients), retain_graph=True)

    for row, branch in np.ndindex(rows, answers):
        soft = torch.einsum("m,mkd->kd", coefficients[int(batch.user[row])].softmax(0), basis)
        at = model.sequence(inputs, row, branch, soft)
        answer = asked.ids[row, branch][asked.mask[row, branch]]
        found, every = relevance_of(model, configs, at, answer)
        logits[row, branch, tail - len(answer) :] = every[-len(answer) :].detach().numpy()
        spoken = -every[-len(answer) :].log_softmax(-1)[np.arange(len(answer)), answer].sum()
        spoken_slope = slope_of(spoken)
        for name, each in found.items():
            share = slots_of(each, inputs.visual_position[row] - inputs.start[row], exactly(batch.slot_matrix[row]))
            aligned = (share - exactly(batch.gaze[row])).square().sum()
            add(name, 0, aligned, slope_of(aligned))
            add(name, 1, spoken, spoken_slope)
            relevance[name][row, branch, at.places] = each.detach().numpy()
            slots[name][row, branch] = share.detach().numpy()
    return {name: Found(losses[name], relevance[name], slots[name], logits, gradient[name]) for name in configs}
