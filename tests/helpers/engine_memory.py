"""Print the bytes of all live tensors of one rank after a backward pass, without ZeRO's bucket.

Usage: python engine_memory.py PRECISION STAGE
"""

import gc
import os
import sys
import tempfile
from pathlib import Path

import torch

from march_search.architecture.architecture import Architecture
from march_search.config import DataConfig, DevicesConfig, TrainingConfig, TrialConfig
from march_search.config.deepspeed_config import BUCKET_ELEMENTS
from march_search.training import loop
from march_search.training.engine import join_ranks


def main() -> None:
    ranks = int(os.environ["WORLD_SIZE"])
    a = Architecture.parse("L2-D256-H4x64-F1024-V8192")
    data = DataConfig(vocab_size=a.vocab_size, sequence_length=64)
    training = TrainingConfig(
        tokens=4 * 512,
        global_batch_tokens=512,
        micro_batch_sequences=4 // ranks,
        precision=sys.argv[1],
        zero_stage=int(sys.argv[2]),
    )
    config = TrialConfig(
        architecture=a.name,
        store="",
        data=data,
        training=training,
        devices=DevicesConfig(kind="cpu", ranks=ranks, nodes=1),
    )
    rank = join_ranks(config.devices)
    with tempfile.TemporaryDirectory() as folder:
        engine = loop._engine(Path(folder), config, a, rank)
    for step in range(2):
        for micro in range(2):
            inputs = torch.zeros(training.micro_batch_sequences, data.lengths.input, dtype=torch.long)
            targets = torch.zeros(training.micro_batch_sequences, data.lengths.target, dtype=torch.long)
            engine.backward(engine(inputs, targets))
            if step == micro == 1:
                gc.collect()
                storages = [x.untyped_storage() for x in gc.get_objects() if isinstance(x, torch.Tensor)]
                live = {storage.data_ptr(): storage.nbytes() for storage in storages}
                buckets = (2 * BUCKET_ELEMENTS, 4 * BUCKET_ELEMENTS)
                print(f"live {sum(size for size in live.values() if size not in buckets)}", flush=True)
            engine.step()
    os._exit(0)  # two gloo ranks may abort while the interpreter exits


if __name__ == "__main__":
    main()
