"""Build the torch module of any `Architecture`, with exactly `num_params` parameters. Importing it imports torch."""

from march_search.model.huggingface_folder import from_huggingface
from march_search.model.init import RECIPES
from march_search.model.seq2seq import Seq2Seq, build

__all__ = ["RECIPES", "Seq2Seq", "build", "from_huggingface"]
