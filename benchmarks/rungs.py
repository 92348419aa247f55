"""Choose the default rungs on some pools of recorded runs, and try them on others.

    python benchmarks/rungs.py [--replays 2000] [--seed 0]

The rules are listed first, in `RULES`. One is chosen on pools of 12 runs without one family, and tried on other sizes
of pool, with that family, and with other families left out. A rule may be chosen if it compares the losses at the rungs
alone and costs at most as much as the former default in pools of 18. Of those whose mean regret is not separated from
the lowest (two standard errors of the paired differences), the one is chosen that promotes the largest share of its
first rung, where a decision is the most likely to be wrong. The figures depend on the seed and not on the machine.
"""

import argparse
import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from march_search.config.halving import Halving
from march_search.replay.asha import Asha, replay_asha
from march_search.replay.learning_curves import Curves, LearningCurves, read_curves
from march_search.replay.pools import Draw, Replay, draw, share_interval
from march_search.replay.strategies import replay_rungs

RESULTS = Path(__file__).parent.parent / "studies" / "results"
HELD_OUT = "d_ff"
"""Family that the choice does not see."""


@dataclass(frozen=True)
class Margin(Halving):
    """Rungs that also promote all candidates within 0.02 nats of the worst that is promoted: twice the noise."""

    def promoted(self, losses, rung):  # type: ignore[no-untyped-def]
        """Return the promoted candidates, lowest loss first."""
        limit = losses[super().promoted(losses, rung)[-1]] + 0.02
        return tuple(sorted((key for key in losses if losses[key] <= limit), key=losses.__getitem__))


@dataclass(frozen=True)
class Rule:
    """A rule under test."""

    words: str
    halving: Halving | Asha
    averaged: int = 1
    """Number of last evaluations whose mean is compared."""

    @property
    def may_be_chosen(self) -> bool:
        """Whether the rule compares losses at rungs only and costs no more than the former default in pools of 18."""
        rule = self.halving
        return self.averaged == 1 and type(rule) is Halving and cost(rule) <= cost(THIRD) + 1e-9


def rungs(*percents: float, keep: float | None = None, finalists: int = 1) -> Halving:
    """Return the rule with rungs at these percentages."""
    return Halving((*(percent / 100 for percent in percents), 1.0), keep, finalists)


THIRD = rungs(2, 6, 20, keep=1 / 3)
RULES = (
    Rule("2/6/20%, a third (the former default)", THIRD),
    Rule("2/6/20%, a third, the mean of the last three evaluations decides", THIRD, averaged=3),
    Rule("2/6/20%, a third and all within 0.02 nats of it", Margin(THIRD.fractions, THIRD.keep)),
    Rule("2/6/20%, a half", rungs(2, 6, 20, keep=0.5)),
    Rule("2/6/20%, a quarter", rungs(2, 6, 20, keep=0.25)),
    Rule("4/12/36%, a third", rungs(4, 12, 36, keep=1 / 3)),
    Rule("2/10/20%, a third", rungs(2, 10, 20, keep=1 / 3)),
    Rule("2/4/8/16/32%, equal tokens per rung", rungs(2, 4, 8, 16, 32)),
    Rule("2/6/18/54%, equal tokens", rungs(2, 6, 18, 54)),
    Rule("2/8/32%, equal tokens", rungs(2, 8, 32)),
    Rule("2/10/50%, equal tokens", rungs(2, 10, 50)),
    Rule("2/10%, equal tokens", rungs(2, 10)),
    Rule("2/20%, equal tokens", rungs(2, 20)),
    Rule("2/8/20%, equal tokens", rungs(2, 8, 20)),
    Rule("2/10/20%, equal tokens", rungs(2, 10, 20)),
    Rule("2/10/30%, equal tokens", rungs(2, 10, 30)),
    Rule("2/12/24%, equal tokens", rungs(2, 12, 24)),
    Rule("2/10/20%, equal tokens, the mean of the last three evaluations decides", rungs(2, 10, 20), averaged=3),
    Rule("2/10/20%, equal tokens and all within 0.02 nats of them", Margin(rungs(2, 10, 20).fractions)),
)
"""Equal tokens per rung: each rung promotes the ratio of its tokens to the next rung's."""


def cost(halving: Halving, candidates: int = 18) -> float:
    """Return the tokens of a rule as a share of training all candidates to the end."""
    steps = zip((0.0, *halving.fractions), halving.fractions, halving.survivors(candidates), strict=False)
    return sum((rung - before) * number for before, rung, number in steps) / candidates


@dataclass(frozen=True)
class Row:
    """What a rule found and cost, over pools."""

    regrets: np.ndarray
    spent: float

    def __str__(self) -> str:
        found, pools = int(np.sum(self.regrets == 0)), len(self.regrets)
        low, high = share_interval(found, pools)
        mean, interval = self.regrets.mean(), 1.96 * standard_error(self.regrets)
        share = f"{found / pools:.1%} ({100 * low:.1f}–{100 * high:.1f})"
        return f"{share} | {mean:.4f} ± {interval:.4f} | {self.spent:.1%}"


def standard_error(values: np.ndarray) -> float:
    """Return the standard error of a mean."""
    return float(np.std(values, ddof=1)) / len(values) ** 0.5


def draws(table: LearningCurves, pool: int, replays: int, seed: int) -> list[Draw]:
    """Return pools with the noise of seeds (0.006 nats per curve) and of evaluations (0.005)."""
    how = Replay(replays=replays, pool=pool, seed=seed, noise=0.006, evaluation_noise=0.005)
    return [draw(table, how, number) for number in range(replays)]


def tried(rule: Rule, pools: Sequence[Curves]) -> Row:
    """Apply a rule to every pool."""
    regrets, spent = [], []
    for curves in pools:
        seen = averaged(curves, rule.averaged)
        order = range(len(seen.tokens))  # the pools of small models, to which asha is applied, are in random order
        if isinstance(rule.halving, Asha):
            done = replay_asha(seen, order, 1, rule.halving)
        else:
            done = replay_rungs(seen, order, 1, rule.halving)
        regrets.append(seen.final[done.choice] - min(seen.final))
        spent.append(done.cost / seen.total())
    return Row(np.array(regrets), float(np.mean(spent)))


def missed(rule: Rule, drawn: Sequence[Draw]) -> str:
    """Return the best runs of the pools in which a rule selects another run, with the number of these pools."""
    names: Counter[str] = Counter()
    for each in drawn:
        choice = replay_rungs(each.curves, each.order, 1, rule.halving).choice
        best = int(np.argmin(each.curves.final))
        if each.curves.final[choice] > each.curves.final[best]:
            names[each.pool.runs[best].name] += 1
    return ", ".join(f"{name} {number}" for name, number in names.most_common())


def averaged(curves: Curves, number: int) -> Curves:
    """Return the curves with each loss replaced by the mean of up to `number` evaluations that end there."""
    losses = (
        tuple(float(np.mean(loss[max(0, end - number) : end])) for end in range(1, len(loss) + 1))
        for loss in curves.losses
    )
    return curves if number == 1 else replace(curves, losses=tuple(losses))


def chosen(pools: Sequence[Curves]) -> tuple[Rule, list[Row]]:
    """Return the rule that is chosen on these pools, and the rows of all."""
    rows = [tried(rule, pools) for rule in RULES]
    eligible = [n for n, rule in enumerate(RULES) if rule.may_be_chosen]
    least = rows[min(eligible, key=lambda n: rows[n].regrets.mean())].regrets
    gaps = {n: rows[n].regrets - least for n in eligible}
    tied = [n for n, gap in gaps.items() if gap.mean() <= 2 * standard_error(gap)]
    return RULES[max(tied, key=lambda n: RULES[n].halving.count(1000, 0))], rows


def small_models() -> tuple[list[str], dict[str, list[list[tuple[float, float]]]]]:
    """Return the encoder-decoders of `studies/results` that were trained with two seeds, and the curves of each."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for path in sorted(RESULTS.glob("*.csv")):
        for row in csv.DictReader(path.open()):
            if row["state"] == "complete" and row["learning_rate"] == "0.002" and "-dec-" not in row["name"]:
                keys = [key for key in row if key.startswith("loss@") and row[key]]
                curve = [(float(key.removeprefix("loss@")), float(row[key])) for key in keys]
                curves.setdefault(row["name"], {})[row["seed"]] = curve
    both = {name: [*seeds.values()] for name, seeds in curves.items() if len(seeds) == 2}
    return [*both], both


def small_pools(pool: int, replays: int, seed: int) -> list[Curves]:
    """Return pools of small models, each with the curve of one seed; regret is by the mean of both seeds."""
    names, curves = small_models()
    pools = []
    for number in range(replays):
        rng = np.random.default_rng([seed, number])
        arms = [curves[names[arm]] for arm in rng.choice(len(names), pool, replace=False)]
        seen = [arm[rng.integers(2)] for arm in arms]
        pools.append(
            Curves(
                tokens=tuple(tuple(tokens for tokens, _ in curve) for curve in seen),
                losses=tuple(tuple(loss for _, loss in curve) for curve in seen),
                rates=(1.0,) * pool,
                final=tuple(float(np.mean([curve[-1][1] for curve in arm])) for arm in arms),
            )
        )
    return pools


def heading(text: str) -> None:
    """Print the heading of a Markdown table."""
    print(f"\n| {text} | best found | mean regret | tokens |\n| --- | --- | --- | --- |")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replays", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print_tables(arguments.replays, arguments.seed)


def print_tables(replays: int, seed: int) -> None:
    """Print the choice of the rungs, and how they do on pools on which they were not chosen."""
    table = read_curves("march-2023")
    families = [family for family in dict.fromkeys(run.family for run in table.runs) if family != "baseline"]
    without = {f: replace(table, runs=tuple(r for r in table.runs if r.family != f)) for f in families}

    def pools(source: LearningCurves, size: int, start: int) -> list[Curves]:
        return [drawn.curves for drawn in draws(source, size, replays, start)]

    best, rows = chosen(pools(without[HELD_OUT], 12, seed))
    heading(f"chosen on {replays} pools of 12 runs without {HELD_OUT}")
    for rule, row in zip(RULES, rows, strict=True):
        note = ", **chosen**" if rule is best else "" if rule.may_be_chosen else ", for comparison only"
        print(f"| {rule.words}{note} | {row} |", flush=True)

    full = {size: pools(table, size, seed + 1) for size in (8, 12, 18, 25)}
    end, late = Rule("all train to the end", Halving((1.0,))), best.halving.fractions[1:]
    compared = (
        RULES[0],
        best,
        replace(RULES[0], words="former default, three finalists", halving=replace(THIRD, finalists=3)),
        replace(best, words="chosen, three finalists", halving=replace(best.halving, finalists=3)),
        replace(RULES[0], words="former default, first rung at 6%", halving=rungs(6, 20, keep=1 / 3)),
        replace(best, words="chosen, first rung at 6%", halving=Halving((0.06, *late))),
        replace(best, words="chosen, first rung at 6%, three finalists", halving=Halving((0.06, *late), finalists=3)),
        end,
    )
    for size, drawn in full.items():
        heading(f"{replays} pools of {size} of the 25 runs")
        for rule in compared:
            print(f"| {rule.words} | {tried(rule, drawn)} |", flush=True)

    print("\nMost frequent best runs of the pools of 12 and of 18 in which a rule selects another run:\n")
    for size in (12, 18):
        for rule in (RULES[0], best):
            print(f"- {size}, {rule.words}: {missed(rule, draws(table, size, replays, seed + 1))}", flush=True)

    heading("pools of 12 runs, one family left out")
    for family in families:
        drawn = pools(without[family], 12, seed + 2)
        for rule in (RULES[0], best, Rule("2/20%, equal tokens", rungs(2, 20)), end):
            print(f"| {family}: {rule.words} | {tried(rule, drawn)} |", flush=True)

    heading("another rule chosen without each family, tried on pools of 12 of all runs")
    for family in families:
        other, _ = chosen(pools(without[family], 12, seed + 3))
        print(f"| {family}: {other.words} | {tried(other, full[12])} |", flush=True)

    for size in (12, 18, 25):
        heading(f"{replays} pools of {size} of {len(small_models()[0])} small models, decided at 20% at the earliest")
        drawn = small_pools(size, replays, seed + 4)
        one, later = rungs(20, keep=1e-6), rungs(40, keep=1e-6)
        for words, halving in (
            ("20%, the best trains to the end", one),
            ("40%, the best trains to the end", later),
            ("20%, three finalists", replace(one, finalists=3)),
            ("asha, a third at 20 and 40%", Asha((0.2, 0.4, 1.0))),
            ("asha, half at 20 and 40%", Asha((0.2, 0.4, 1.0), 2)),
            (end.words, end.halving),
        ):
            print(f"| {words} | {tried(Rule(words, halving), drawn)} |", flush=True)


if __name__ == "__main__":
    main()
