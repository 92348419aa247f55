"""Architecture -> nn.Module: every setting of every field, with exactly `num_params` parameters. Imports torch."""

from march_search.model.init import RECIPES
from march_search.model.seq2seq import Seq2Seq, build

__all__ = ["RECIPES", "Seq2Seq", "build"]
