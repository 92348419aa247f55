"""A mixture-of-experts feed-forward layer: a router sends each position to `top_k` of `num_experts` experts.

An expert is a feed-forward layer with ReLU, of width `d_ff`. Its output is weighted by its probability (Shazeer et al.
2017, arXiv 1701.06538; Fedus et al. 2021, arXiv 2101.03961). No position is dropped, so a sequence does not depend on
others in its batch. `docs/blocks.md` explains this file.
"""

import march_search

BALANCE = 0.01
"""Coefficient of the load-balancing loss (Fedus et al. 2021, section 2.2)."""


def num_params(d_model, d_ff, num_experts, top_k):
    """Return the parameters of one layer: the router, and two matrices per expert."""
    return d_model * num_experts + 2 * d_model * d_ff * num_experts


def active_params(d_model, d_ff, num_experts, top_k):
    """Return the parameters that one position is multiplied by."""
    return d_model * num_experts + 2 * d_model * d_ff * top_k


def refuse(d_model, d_ff, num_experts, top_k):
    """Yield what cannot be: more experts chosen than there are."""
    yield top_k > num_experts, f"top_k ({top_k}) exceeds num_experts ({num_experts})"


def build(d_model, d_ff, num_experts, top_k):
    """Return the module of one layer."""
    import torch
    import torch.nn.functional as F
    from torch import nn

    class MixtureOfExperts(nn.Module):
        """Shape suffixes: B examples, L positions, N = B * L, W width, F d_ff, E experts, K experts per position."""

        def __init__(self):
            super().__init__()
            self.router = nn.Parameter(torch.empty(num_experts, d_model))
            self.wi = nn.Parameter(torch.empty(num_experts, d_ff, d_model))
            self.wo = nn.Parameter(torch.empty(num_experts, d_model, d_ff))

        def forward(self, x_BLW):
            """Return the layer's output and its load-balancing loss."""
            x_NW = x_BLW.flatten(0, 1)
            probabilities_NE = F.linear(x_NW, self.router).float().softmax(-1)
            weights_NK, experts_NK = probabilities_NE.topk(top_k)
            if top_k > 1:
                weights_NK = weights_NK / weights_NK.sum(-1, keepdim=True)
            added_NW = torch.zeros_like(x_NW)
            for expert in range(num_experts):  # the positions of one expert are one product
                rows, choice = (experts_NK == expert).nonzero(as_tuple=True)
                hidden = F.relu(F.linear(x_NW[rows], self.wi[expert]))
                own = F.linear(hidden, self.wo[expert]) * weights_NK[rows, choice, None].to(x_NW.dtype)
                added_NW = added_NW.index_add(0, rows, own)
            shares_E = F.one_hot(experts_NK, num_experts).float().mean((0, 1))
            loss = num_experts * (shares_E * probabilities_NE.mean(0)).sum()
            return added_NW.view_as(x_BLW), BALANCE * loss

    return MixtureOfExperts()


BLOCK = march_search.Block(
    name="moe",
    fields={"num_experts": (1, 2, 4, 8), "top_k": (1, 2)},
    num_params=num_params,
    active_params=active_params,
    refuse=refuse,
    build=build,
)
