"""AdamW of torch that does not load torch's compiler: that takes one to two seconds of a start, for nothing."""

import inspect

import torch

_TORCHS = torch.optim.AdamW


class AdamW(_TORCHS):
    """The same methods without what torch wraps around them, which imports its compiler to keep it away from them."""

    step = torch.no_grad()(inspect.unwrap(_TORCHS.step))
    add_param_group = inspect.unwrap(_TORCHS.add_param_group)
    load_state_dict = inspect.unwrap(_TORCHS.load_state_dict)
    zero_grad = inspect.unwrap(_TORCHS.zero_grad)
