"""torch's AdamW without importing torch's compiler, which would add one to two seconds to every start."""

import inspect

import torch

_TORCHS = torch.optim.AdamW


class AdamW(_TORCHS):
    """torch's AdamW with its methods unwrapped; the wrappers import the compiler only to disable it."""

    step = torch.no_grad()(inspect.unwrap(_TORCHS.step))
    add_param_group = inspect.unwrap(_TORCHS.add_param_group)
    load_state_dict = inspect.unwrap(_TORCHS.load_state_dict)
    zero_grad = inspect.unwrap(_TORCHS.zero_grad)
