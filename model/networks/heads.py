"""Last layers, small at first, so that training begins near a posterior of N(0, I) and near grey pictures."""

import torch

from model.networks.linear import Linear


def first_small(features: int, outputs: int) -> Linear:
    """A linear layer with a tenth of torch's usual initial weights and no bias yet.

    Shapes:  (n, features) -> (n, outputs)
    """
    head = Linear(features, outputs)
    with torch.no_grad():
        head.weight.mul_(0.1)
        head.bias.zero_()
    return head
