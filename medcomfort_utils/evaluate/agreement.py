"""How far a judge's marks agree with people's."""

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from medcomfort_utils.paths import MedComfortError


def quadratic_kappa(human: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Cohen's kappa with quadratic weights along the last axis (Cohen 1968, Psychol. Bull. 70(4)), or nan."""
    apart = ((human - judge) ** 2).mean(-1)
    by_chance = human.var(-1) + judge.var(-1) + (human.mean(-1) - judge.mean(-1)) ** 2
    return 1 - np.divide(apart, by_chance, out=np.full(np.shape(apart), np.nan), where=by_chance > 0)


def spearman(human: np.ndarray, judge: np.ndarray) -> np.ndarray:
    """Spearman's rank correlation along the last axis; nan where one side is constant."""
    one, other = (rankdata(values, axis=-1) for values in (human, judge))
    one, other = (ranks - ranks.mean(-1, keepdims=True) for ranks in (one, other))
    length = np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
    return np.divide((one * other).sum(-1), length, out=np.full(np.shape(length), np.nan), where=length > 0)


def agreement(human: pd.DataFrame, judge: pd.DataFrame, samples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """How far the judge's marks agree with people's, a row a criterion that both tables have.

    Both tables have one row an answer, with the same index; nan where there is no mark. Columns: `criterion`, `n`,
    `left_out` (answers without a mark on either side), `kappa` (quadratic weights) and `spearman`, each with its 95 %
    interval (percentile bootstrap over answers). Raises MedComfortError if the answers or all criteria
    differ, or a mark is no number.
    """
    shared = [name for name in human.columns if name in judge.columns and name not in ("reason", "problem")]
    if set(human.index) != set(judge.index) or not human.index.is_unique or not shared:
        raise MedComfortError("agreement needs the same answers, each once, and a common criterion in both tables.")
    rng, rows = np.random.default_rng(seed), []
    for name in shared:
        try:
            both = pd.DataFrame({"human": human[name], "judge": judge[name]}).astype(float).dropna()
        except ValueError as error:
            raise MedComfortError(f"agreement: the marks of {name} must be numbers ({error}).") from error
        row = {"criterion": name, "n": len(both), "left_out": len(human) - len(both)}
        drawn = rng.integers(0, max(len(both), 1), (samples, len(both)))
        for measure, of in (("kappa", quadratic_kappa), ("spearman", spearman)):
            sides = both["human"].to_numpy(), both["judge"].to_numpy()
            resampled = of(*(side[drawn] for side in sides)) if len(both) > 1 else np.array([np.nan])
            known = resampled[~np.isnan(resampled)]
            low, high = np.quantile(known, [0.025, 0.975]) if known.size else (np.nan, np.nan)
            row |= {measure: float(of(*sides)) if len(both) > 1 else np.nan}
            row |= {f"{measure}_low": float(low), f"{measure}_high": float(high)}
        rows.append(row)
    return pd.DataFrame(rows)
