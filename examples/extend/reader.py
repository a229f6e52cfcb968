"""A reader of your own format: one CSV line for each agent and step. Run: python examples/extend/reader.py

Elsewhere: marl-offline --import examples/extend/reader.py data inspect log.csv
"""

from pathlib import Path

import numpy as np

from torchrl_marl_offline import from_arrays
from torchrl_marl_offline.data.formats.readers import register_reader

HEADER = "episode,step,agent,x,y,action,reward,last"


def recognise(content):
    """Return the path that is to be read, or None where it is of another format."""
    path = Path(content.path)
    return path if path.suffix == ".csv" and path.open().readline().strip() == HEADER else None


def read(path, **options):
    """Return the dataset: rows in the order of episodes, steps and agents."""
    rows = np.loadtxt(path, delimiter=",", skiprows=1)
    rows = rows[np.lexsort(rows[:, [2, 1, 0]].T)].reshape(-1, len(set(rows[:, 2])), rows.shape[1])  # [T, n, columns]
    observation, action, reward, last = rows[..., 3:5], rows[..., 5:6], rows[..., 6], rows[:, 0, 7] > 0
    return from_arrays(observations=observation, actions=action, rewards=reward, terminals=last, **options)


register_reader("robots", read, recognise=recognise)

if __name__ == "__main__":
    from torchrl_marl_offline import load_dataset

    lines = [
        f"{e},{t},{a},{t / 9},{a},{e / 2 - 0.5},1.0,{int(t == 9)}" for e in range(3) for t in range(10) for a in (0, 1)
    ]
    Path("log.csv").write_text("\n".join([HEADER, *lines]))
    print(load_dataset("log.csv").spec)
