"""Search strategies on the 25 recorded runs of 2023: tokens spent, how often the best is found, families left out.

python benchmarks/strategies.py
"""

from march_search.replay.orders import replay
from march_search.replay.strategies import STRATEGIES
from march_search.replay.table import read_table

ORDERS = 1000
table = read_table("march-2023")

print("| strategy | workers | proposals | noise, nats | spent | best found | mean regret | busy |")
print("| --- | --- | --- | --- | --- | --- | --- | --- |")
for name in STRATEGIES:
    orders = ORDERS if name in ("rungs", "exhaustive") else 200
    for workers, noise, of, proposals in (
        (1, 0.0, "run", "random"),
        (4, 0.0, "run", "random"),
        (8, 0.0, "run", "random"),
        (1, 0.005, "run", "random"),
        (8, 0.005, "run", "random"),
        (1, 0.005, "evaluation", "random"),
        (1, 0.0, "run", "tpe"),
    ):
        few = 20 if proposals == "tpe" else orders
        one = replay(table, name, orders=few, workers=workers, noise=noise, noise_of=of, proposals=proposals)
        told = "0" if not noise else f"{noise:g} a{'n' * (of == 'evaluation')} {of}"
        print(
            f"| {name} | {workers} | {proposals} | {told} | {one.spent:.1%} | {one.found:.1%} "
            f"| {one.regret:.4f} | {one.busy:.0%} |"
        )

print("\n| family left out | runs | spent | of that, one run to its end | best found |")
print("| --- | --- | --- | --- | --- |")
for family in sorted(set(table.families)):
    left = table.without(family)
    one = replay(left, "rungs", orders=ORDERS, noise=0.005)
    many = len(left.architectures)
    print(f"| {family} | {many} | {one.spent:.1%} | {1 / many:.1%} | {one.found:.1%} |")
